"""MLX's primitives in the place of operations, on the platform here, where the plug-in lowers them to plain JAX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.harness import build_quantised, logits_in_chunks, open_tiny, recording
from ops.ragged_cases import ATOL, BATCHES, HEADS, SPECS, Ragged, dense
from quant.block_cases import random_blocks

from cpu_kernels import Rms
from realm_jax import quant
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.ops import AttentionSpec, cached_attention, quantized_matmul
from realm_jax.ops.norm import normalise
from realm_jax.quant import QTensor, affine, dequantize

pytestmark = pytest.mark.usefixtures("primitives")

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
# What rounding a result to its dtype loses, as a fraction of it.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9}


def weight(kind: GGMLType, rows: int = 24) -> QTensor:
    shape = (rows, 2 * max(kind.block_size, 128))
    blocks = random_blocks(kind, rows * shape[1] // kind.block_size)
    return quant.from_raw(RawTensor("w", kind, shape, blocks.reshape(-1)), layout="mps")


def activations(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), dtype)


@DTYPES
@pytest.mark.parametrize("kind", affine.FORMATS, ids=lambda kind: kind.name)
def test_products_are_those_of_the_decoded_weight(kind: GGMLType, dtype: Any) -> None:
    w = weight(kind)
    x = activations(2, 3, w.shape[1], dtype=dtype)
    y = jax.jit(partial(quantized_matmul, implementation="mps"))(x, w)
    assert y.dtype == dtype
    wide, full = np.asarray(x, np.float64), np.asarray(dequantize(w), np.float64)
    exact = wide @ full.T
    # Float32 sums of exact weights, then the result's own rounding.
    bound = (w.shape[1] + 2) * 2.0**-24 * (np.abs(wide) @ np.abs(full).T) + 2 * ROUNDING[dtype.dtype.name] * abs(exact)
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), bound + 1e-30)


def test_products_differentiate_in_both_modes_and_batch() -> None:
    w = weight(GGMLType.Q4_K)
    blocks = QTensor(dequantize(w), GGMLType.F32)
    x, seed = activations(4, w.shape[1]), activations(4, 24)
    ours, theirs = partial(quantized_matmul, w=w, implementation="mps"), partial(quantized_matmul, w=blocks)
    scale = float(jnp.abs(blocks.data).max())
    close = partial(np.testing.assert_allclose, rtol=0, atol=scale * w.shape[1] * 2**-20)  # sums of products of about 1
    close(jax.vjp(ours, x)[1](seed)[0], jax.vjp(theirs, x)[1](seed)[0])
    close(jax.jvp(ours, (x,), (x,))[1], ours(x))
    close(jax.vmap(ours)(x), ours(x))
    experts = w.with_data(tuple(jnp.stack([part, part]) for part in w.data))
    each = jax.vmap(lambda data: quantized_matmul(x, w.with_data(data), implementation="mps"))(experts.data)
    close(each, jnp.stack([ours(x)] * 2))


@DTYPES
@pytest.mark.parametrize("size", [64, 576])
def test_norms_are_those_of_the_reference(size: int, dtype: Any) -> None:
    norm = Rms(weight=activations(size), eps=1e-5)
    x = activations(5, size, dtype=dtype)
    ours, theirs = partial(normalise, norm, implementation="mps"), partial(normalise, norm)
    assert ours(x).dtype == dtype
    # A mean of `size` squares, a root and two products in float32, in another order, then the result's own rounding.
    rtol = (size + 6) * 2.0**-24 + 2 * ROUNDING[dtype.dtype.name]
    wide = partial(np.asarray, dtype=np.float64)
    np.testing.assert_allclose(wide(jax.jit(ours)(x)), wide(theirs(x)), rtol=rtol)
    np.testing.assert_allclose(wide(jax.vmap(ours)(x)), wide(theirs(x)), rtol=rtol)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x).astype(jnp.float32))))(x) for f in (ours, theirs)]
    np.testing.assert_allclose(wide(gradients[0]), wide(gradients[1]), rtol=0, atol=rtol * np.abs(gradients[1]).max())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("ragged", BATCHES.values(), ids=BATCHES)
def test_attention_is_dense_attention(ragged: Ragged, spec: AttentionSpec) -> None:
    q, k, v, cache, batch = ragged.build(seed=0)
    sinks = jnp.linspace(-1.0, 2.0, HEADS) if spec.softcap else None
    attend = jax.jit(partial(cached_attention, spec=spec, sinks=sinks, implementation="mps"))
    out, cache = attend((q, k, v), cache, batch)
    arrays = (np.asarray(part) for part in (q, cache))
    expected = dense(ragged, *arrays, batch, spec, None if sinks is None else np.asarray(sinks))
    real = len(q) - ragged.padding
    np.testing.assert_allclose(out[:real], expected[:real], atol=ATOL)
    assert np.isfinite(out).all()  # what padding leaves in the cache is multiplied by zero


def test_decoding_differentiates_through_the_cache() -> None:
    q, k, v, cache, batch = BATCHES["decode"].build(seed=1)

    def loss(implementation: str, k: jax.Array, cache: jax.Array) -> jax.Array:
        attend = partial(cached_attention, implementation=implementation)
        return jnp.sum(jnp.sin(attend((q, k, v), cache, batch, SPECS["window"])[0]))

    gradients = (jax.jit(jax.grad(partial(loss, name), (0, 1)))(k, cache) for name in ("mps", "xla"))
    for ours, theirs in zip(*gradients, strict=True):
        assert float(jnp.abs(theirs).max()) > 0.01
        np.testing.assert_allclose(ours, theirs, atol=ATOL)


# Half rotations, norms of heads, windows and soft-caps, and experts with sinks whose weights stay in blocks.
@pytest.mark.parametrize("name", ["phi3_longrope", "gemma3", "gemma2", "gpt_oss_mxfp4"])
def test_logits_of_a_model_equal_those_of_the_reference(name: str) -> None:
    ids, file = recording(name, "short").ids, open_tiny(name)
    for size, count in ((1, 5), (7, 14)):
        exact = logits_in_chunks(build_quantised(name, file, "xla"), ids[:count], size)
        logits = logits_in_chunks(build_quantised(name, file, "mps"), ids[:count], size)
        # Both in float32, in which these models are up to 1e-5 of the largest logit away from float64.
        assert np.abs(logits - exact).max() <= 2e-5 * np.abs(exact).max()
