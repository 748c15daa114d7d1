"""Activations in 8 bits as one more implementation: what it rounds, what it leaves, and where it loads."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import quantized_matmul as kernels
from realm_jax import quant
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.ops import quantized_matmul
from realm_jax.ops.backends import choose_implementation, layout_name, pallas_backend, require_device
from realm_jax.ops.projection import LinearMap, project
from realm_jax.quant import QTensor

INT8 = "triton_int8_interpreted"


@pytest.fixture(scope="module")
def weight() -> QTensor:
    values = np.random.default_rng(3).normal(size=(32, 64)).astype(np.float32)
    stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    raw = RawTensor("w", GGMLType.Q8_0, (32, 64), np.ascontiguousarray(stored).view(np.uint8).reshape(-1))
    return quant.from_raw(raw, layout=layout_name(INT8))


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=(17, 64)), jnp.bfloat16)


@pytest.fixture(scope="module")
def products(weight: QTensor, x: jax.Array) -> dict[str, jax.Array]:
    options = {"backend": "triton", "interpret": True}
    return {
        name: kernels.quantized_matmul(x, weight.data, "Q8_0", (32, 64), activations=name, **options)  # type: ignore[arg-type]
        for name in ("int8", "bfloat16")
    }


def test_the_implementation_says_what_is_rounded(weight: QTensor, x: jax.Array, products: dict[str, jax.Array]) -> None:
    for implementation, name in ((INT8, "int8"), ("triton_interpreted", "bfloat16")):
        y = quantized_matmul(x, weight, implementation=implementation)
        np.testing.assert_array_equal(y, products[name])
    assert (products["int8"] != products["bfloat16"]).any()


def test_a_head_that_asks_for_finer_scales_is_not_rounded(
    weight: QTensor, x: jax.Array, products: dict[str, jax.Array]
) -> None:
    for group, name in ((32, "int8"), (16, "bfloat16")):
        (y,) = project(x, [LinearMap(weight=weight)], activation_group=group, implementation=INT8)  # type: ignore[arg-type]
        np.testing.assert_array_equal(y, products[name])


def test_it_belongs_to_a_gpu() -> None:
    assert pallas_backend("triton_int8") == ("triton", False)
    assert pallas_backend(INT8) == ("triton", True)
    with pytest.raises(RuntimeError, match="'triton_int8' needs a GPU, .* use triton_int8_interpreted to check"):
        require_device(choose_implementation("triton_int8"))
