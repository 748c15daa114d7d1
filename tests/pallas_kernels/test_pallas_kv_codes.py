"""Keys and values in 8 bits: the bound of their rounding, and the pool that keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention import (
    QuantizedKV,
    dequantize,
    paged_attention,
    quantize,
    quantized_pool,
    unpack_pool,
    write_pool,
)
from pallas_kernels.paged_attention.cases import SMALL_CASES
from pallas_kernels.paged_attention.config import Shape, tpu_config


@pytest.mark.parametrize("size", [1e-36, 1e-3, 1.0, 1e30])
def test_rounding_is_at_most_half_a_step(size: float) -> None:
    rng = np.random.default_rng(0)
    x = (size * rng.normal(size=(50, 3, 64))).astype(np.float32)
    x[:10] *= np.exp(2 * rng.normal(size=64))  # channels of unequal sizes, as keys have them
    kv = quantize(jnp.asarray(x))
    codes, scales = np.asarray(kv.codes, np.float64), np.asarray(kv.scales, np.float64)[..., None]
    assert np.abs(codes).max() == 127
    # Half a step, and a unit in the last place each of the scale and of the quotient, of up to 127 steps. Values below
    # the normal ones count as zero.
    assert (np.abs(codes * scales - x) <= scales * (0.5 + 127 * 2.0**-23) + 2.0**-126).all()
    # The product is rounded once.
    np.testing.assert_allclose(dequantize(kv), codes * scales, rtol=2.0**-24)


def test_nothing_stays_nothing() -> None:
    kv = quantize(jnp.asarray([[0.0, 0.0], [1e-40, -1e-42]], jnp.float32))
    assert not np.asarray(kv.codes[0]).any() and float(kv.scales[0]) == 0
    # What XLA takes for zero, or not, depends on the device.
    assert np.abs(np.asarray(dequantize(kv))).max() <= 1e-39


def empty(blocks: int, block_size: int, kv_heads: int, head_dim: int) -> QuantizedKV:
    shapes = quantized_pool(blocks, block_size, kv_heads, head_dim)
    return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), shapes)


@pytest.mark.parametrize(("head_dim", "tokens"), [(12, 3), (64, 1)])
def test_codes_and_scales_lie_at_their_slots(head_dim: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.normal(size=(tokens, 3, head_dim)), jnp.float32) for _ in range(2))
    slots = jnp.asarray([67, 32, 127][:tokens], jnp.int32)
    pages = unpack_pool(write_pool(empty(4, 32, 3, head_dim), k, v, slots), head_dim)
    assert isinstance(pages, QuantizedKV) and pages.codes.shape == (4, 32, 2, 3, head_dim)
    for side, x in enumerate((k, v)):
        for kept, written in ((pages.codes, quantize(x).codes), (pages.scales, quantize(x).scales)):
            flat = np.array(kept.reshape(128, 2, *kept.shape[3:])[:, side])
            np.testing.assert_array_equal(flat[np.asarray(slots)], written)
            flat[np.asarray(slots)] = 0
            assert not flat.any()


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_write_to_a_donated_pool_of_codes_copies_nothing(tokens: int) -> None:
    pool, k = quantized_pool(256, 32, 2, 64), jnp.ones((tokens, 2, 64))
    slots = jnp.arange(tokens, dtype=jnp.int32)
    memory = jax.jit(write_pool, donate_argnums=0).lower(pool, k, k, slots).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= pool.codes.size + 4 * pool.scales.size
    assert memory.temp_size_in_bytes < pool.codes.size / 8


@pytest.mark.parametrize(("block_size", "piece"), [(32, 32), (96, 96), (256, 256), (384, 128), (512, 256)])
def test_rows_of_scales_are_cut_where_registers_end(block_size: int, piece: int) -> None:
    sizes = {"tokens": 1, "sequences": 1, "heads": 2, "kv_heads": 1, "width": 64, "pages": 4}
    assert tpu_config(Shape(block_size=block_size, **sizes, scaled=True)).piece == piece


def test_a_pool_of_another_shape_is_refused() -> None:
    case = next(case for case in SMALL_CASES if case.label == "8 bits")
    q, batch = jnp.zeros((2, 5, 16)), (jnp.zeros(2, jnp.int32), jnp.asarray([0, 1, 2]), jnp.zeros((2, 1), jnp.int32))
    with pytest.raises(ValueError, match="pool must be of q's head_dim and a divisor of its heads, got"):
        paged_attention(q, empty(4, 32, 2, 16), batch, case.options, backend="triton")
