"""The KV cache of either implementation: what is written is read back, in every dtype, and the rest is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels
from realm_jax.ops import (
    KV_CACHE_DTYPES,
    AttentionSpec,
    PagedBatch,
    cached_attention,
    empty_kv_cache,
    kv_cache_array,
    read_kv,
)

HEADS, BLOCK = (2, 40), 32
NATIVE = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
IMPLEMENTATIONS = ["xla", "triton_interpreted", pytest.param("cpu", marks=NATIVE)]

# What a value may lose, relative to the largest of its channels, of 32 of them natively.
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "q8_0": 0.5 / 127 * (1 + 2.0**-10)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_what_is_written_is_read_back(dtype: str, implementation: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(9, heads, HEADS[1])), jnp.float32) for heads in (4, HEADS[0], HEADS[0]))
    table = jnp.asarray([[3, 1, 0]], jnp.int32)
    positions = jnp.arange(BLOCK - 2, BLOCK + 7, dtype=jnp.int32)
    batch = PagedBatch(
        positions=positions,
        slots=table[0, positions // BLOCK] * BLOCK + positions % BLOCK,
        query_start=jnp.asarray([0, 9], jnp.int32),
        context_lens=jnp.asarray([BLOCK + 7], jnp.int32),
        block_table=table,
    )
    array = kv_cache_array(4, BLOCK, HEADS, dtype=dtype, implementation=implementation)
    (cache,) = empty_kv_cache([array], implementation=implementation)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), cache) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), array
    )
    _, cache = cached_attention((q, k, v), cache, batch, AttentionSpec(scale=0.1), implementation=implementation)
    keys, values = read_kv(cache, batch, HEADS[1], implementation=implementation)
    assert keys.shape == values.shape == (1, 3 * BLOCK, *HEADS)
    for read, written in ((keys, k), (values, v)):
        bound = ROUNDING[dtype] * np.abs(written).max(axis=-1, keepdims=True) + 1e-30
        assert (np.abs(read[0, BLOCK - 2 : BLOCK + 7] - written) <= bound).all()
        assert not np.asarray(read[0, : BLOCK - 2]).any()


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype must be one of float32, .*, got 'int8'"):
        kv_cache_array(4, 16, HEADS, dtype="int8")
    for block_size in (16, 80, 288):
        with pytest.raises(ValueError, match=f"block_size must be a multiple of 32 up to 256, .*, got {block_size}"):
            kv_cache_array(4, block_size, HEADS, dtype="q8_0", implementation="triton")
    with pytest.raises(ValueError, match="kv_cache_dtype must be bfloat16, float32 or q8_0 on TPU, got 'float16'"):
        kv_cache_array(4, 16, HEADS, dtype="float16", implementation="tpu")
    with pytest.raises(ValueError, match="block_size must be a multiple of 16 for Pallas kernels, got 20"):
        kv_cache_array(4, 20, HEADS, dtype="float32", implementation="triton")


@NATIVE
def test_native_blocks_hold_whole_groups_of_positions() -> None:
    with pytest.raises(ValueError, match="block_size must be a multiple of 16 on the CPU, got 20"):
        kv_cache_array(4, 20, HEADS, dtype="float16", implementation="cpu")
