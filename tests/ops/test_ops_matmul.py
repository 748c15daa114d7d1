"""quantized_matmul against decode-then-multiply: values, gradients, vmap, sharding, and what it keeps in memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import quants

from realm_jax.gguf import GGMLType
from realm_jax.ops import choose_implementation, quantized_matmul
from realm_jax.quant import QTensor, dequantize

# K products of about 1 in float32, in another order: K * 2^-24, with room for the rounding of the final sum.
RTOL = 512 * 2**-24


def weight(kind: GGMLType, rows: int, columns: int = 512) -> QTensor:
    values = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    packed = quants.quantize(values, kind)  # type: ignore[arg-type]
    return QTensor(jnp.asarray(packed.reshape(rows, -1, kind.type_size)), kind)


def activations(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), jnp.float32)


# 1,009 rows are prime and 1,024 divide evenly: the two ways of decoding piece by piece. 7 rows are one piece.
@pytest.mark.parametrize("rows", [7, 1009, 1024])
@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q5_1])
def test_value_and_gradient_equal_the_decoded_product(kind: GGMLType, rows: int) -> None:
    w, x = weight(kind, rows), activations(2, 3, 512)
    full = np.asarray(dequantize(w), np.float64)
    out = jax.jit(quantized_matmul)(x, w)
    scale = np.abs(np.asarray(x, np.float64)) @ np.abs(full).T
    np.testing.assert_array_less(np.abs(out - np.asarray(x, np.float64) @ full.T), RTOL * scale + 1e-30)
    seed = activations(2, 3, rows)
    _, pull = jax.vjp(lambda x: quantized_matmul(x, w), x)
    (gradient,) = pull(seed)
    bound = rows * 2**-24 * (np.abs(np.asarray(seed, np.float64)) @ np.abs(full))
    np.testing.assert_array_less(np.abs(gradient - np.asarray(seed, np.float64) @ full), bound + 1e-30)


def test_forward_mode_and_vmap() -> None:
    w, x = weight(GGMLType.Q4_0, 1024), activations(4, 512)
    _, tangent = jax.jvp(lambda x: quantized_matmul(x, w), (x,), (x,))
    np.testing.assert_allclose(tangent, quantized_matmul(x, w), rtol=1e-5, atol=1e-3)
    rows = jax.vmap(quantized_matmul, (0, None))(x, w)
    np.testing.assert_allclose(rows, quantized_matmul(x, w), rtol=1e-5, atol=1e-3)


def test_the_decoded_weight_is_not_kept() -> None:
    w = weight(GGMLType.Q4_0, 4096)
    decoded = 4 * 4096 * 512
    loss = jax.jit(jax.grad(lambda x: jnp.sum(quantized_matmul(x, w) ** 2)))
    for function in (jax.jit(lambda x: quantized_matmul(x, w)), loss):
        memory = function.lower(activations(1, 512)).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < decoded / 2


def test_bfloat16_activations_accumulate_in_float32() -> None:
    w, x = weight(GGMLType.Q8_0, 64), activations(2, 512).astype(jnp.bfloat16)
    out = quantized_matmul(x, w)
    assert out.dtype == jnp.bfloat16
    expected = x.astype(jnp.float32) @ dequantize(w, jnp.bfloat16).astype(jnp.float32).T
    # One rounding to 8 bits of mantissa, of values up to about 100.
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-2)


def test_errors_name_the_rule() -> None:
    w = weight(GGMLType.Q8_0, 8)
    with pytest.raises(ValueError, match="x must end in the weight's 512 columns, got shape"):
        quantized_matmul(activations(2, 256), w)
    with pytest.raises(ValueError, match="implementation must be one of xla, cpu, null, triton, tpu, .*, got 'gpu'"):
        quantized_matmul(activations(2, 512), w, implementation="gpu")
    assert choose_implementation(None) == "xla"


_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from gguf import quants
from realm_jax.gguf import GGMLType
from realm_jax.ops import quantized_matmul
from realm_jax.quant import QTensor
kind = GGMLType.Q4_0
values = np.random.default_rng(0).normal(size=(4096, 512)).astype(np.float32)
data = jnp.asarray(quants.quantize(values, kind).reshape(4096, -1, kind.type_size))
x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 512)), jnp.float32)
expected = quantized_matmul(x, QTensor(data, kind))
mesh = Mesh(np.array(jax.devices()), ("model",))
assert len(jax.devices()) == 8
for spec, collective in ((P("model"), None), (P(None, "model"), "all-reduce")):
    sharded = QTensor(jax.device_put(data, NamedSharding(mesh, spec)), kind)
    x_spec = P() if collective is None else P(None, "model")
    x_sharded = jax.device_put(x, NamedSharding(mesh, x_spec))
    compiled = jax.jit(quantized_matmul).lower(x_sharded, sharded).compile()
    text = compiled.as_text()
    gathered = [line for line in text.splitlines() if "all-gather" in line and "u8[" in line]
    assert not gathered, gathered[0]
    assert collective is None or collective in text
    np.testing.assert_allclose(compiled(x_sharded, sharded), expected, rtol=1e-4, atol=1e-3)
"""


def test_weights_sharded_by_rows_or_by_groups_are_never_gathered() -> None:
    """Eight host devices need a process of their own."""
    setup = "import jax; jax.config.update('jax_num_cpu_devices', 8); jax.config.update('jax_platforms', 'cpu')"
    done = subprocess.run([sys.executable, "-c", setup + _SHARDED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
