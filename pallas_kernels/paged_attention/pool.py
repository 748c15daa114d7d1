"""The pool that keeps a layer's keys and values for the kernels, the write to it, and its contents as plain arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.paged_attention.codes import QuantizedKV, quantize

# The fewest channels, and the fewest positions of a block, that a product on the matrix units takes.
LEAST = 16
# Positions that fill a TPU's register of bytes, the lanes of one of scales, and how many are copied at a time at most.
_BYTES, _LANES, _MOST_POSITIONS = 32, 128, 256

# A pool is one array [blocks, kv_heads, block_size, 2 * width], where width is head_dim filled up to a multiple of 16:
#
#   block, head    position 0    k_0 ... k_(width - 1)  v_0 ... v_(width - 1)
#                  position 1    k_0 ... k_(width - 1)  v_0 ... v_(width - 1)
#                  ...
#
# What a kernel reads of a block for one head is contiguous, on a TPU one copy of whole registers: keys of 64 channels
# and their values fill its 128 lanes together.
#
# A pool of 8 bits has int8 codes in that order, and float32 scales [blocks, kv_heads, 2, block_size]:
#
#   block, head    keys    s_0 ... s_(block_size - 1)
#                  values  s_0 ... s_(block_size - 1)
#
# Positions lie along a row, as in the scores and weights that the scales are multiplied with.


Pool = tuple[
    Shaped[Array, "blocks kv_heads block_size double_width"], Float[Array, "blocks kv_heads 2 block_size"] | None
]
"""What a kernel takes: the rows, and where they are codes of 8 bits the scales."""


def pool_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """The shape of a pool.

    Raises:
        ValueError: a block size that no multiple of 16 is.
    """
    if block_size < LEAST or block_size % LEAST:
        raise ValueError(f"block_size must be a multiple of {LEAST} for Pallas kernels, got {block_size}")
    return (num_blocks, kv_heads, block_size, 2 * padded(head_dim))


def quantized_pool(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> QuantizedKV:
    """The shapes of a pool of 8 bits: `codes int8[pool_shape(...)]`, `scales float32[blocks, kv_heads, 2, block_size]`.

    Raises:
        ValueError: a block size that TPUs cannot copy in whole registers.
    """
    if block_size < _BYTES or block_size % (_BYTES if block_size <= _MOST_POSITIONS else _LANES):
        raise ValueError(
            f"block_size must be a multiple of {_BYTES} up to {_MOST_POSITIONS}, or of {_LANES}, for Pallas kernels "
            f"with a KV cache of 8 bits, got {block_size}"
        )
    codes = pool_shape(num_blocks, block_size, kv_heads, head_dim)
    return QuantizedKV(
        codes=jax.ShapeDtypeStruct(codes, jnp.int8),
        scales=jax.ShapeDtypeStruct((num_blocks, kv_heads, 2, block_size), jnp.float32),
    )


def padded(head_dim: int) -> int:
    """The channels that a head has in a pool."""
    return -(-head_dim // LEAST) * LEAST


def write_pool(
    pool: Float[Array, "blocks kv_heads block_size width"] | QuantizedKV,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slots: Int32[Array, " tokens"],
) -> Float[Array, "blocks kv_heads block_size width"] | QuantizedKV:
    """The pool with k and v at slots `block * block_size + offset`; in place where the pool is donated."""
    if not isinstance(pool, QuantizedKV):
        return _write_rows(pool, k.astype(pool.dtype), v.astype(pool.dtype), slots)
    keys, values = quantize(k), quantize(v)
    scales = jnp.stack([keys.scales, values.scales], axis=-1)
    return QuantizedKV(
        codes=_write_rows(pool.codes, keys.codes, values.codes, slots), scales=_write_scales(pool.scales, scales, slots)
    )


def _write_rows(pool: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
    """Keys and values of a position side by side."""
    missing = pool.shape[-1] // 2 - k.shape[-1]
    new = jnp.concatenate([pad_channels(x, missing) for x in (k, v)], axis=-1)
    blocks, offsets = jnp.divmod(slots, pool.shape[2])
    if len(new) == 1:
        # XLA's CPU backend copies the whole pool for a scatter of one row.
        zero = jnp.zeros_like(blocks[0])
        return jax.lax.dynamic_update_slice(pool, new[:, :, None], (blocks[0], zero, offsets[0], zero))
    # Heads are indexed as well: a scatter over axes that do not come first would transpose the pool.
    heads = jnp.arange(pool.shape[1], dtype=jnp.int32)[None]
    return pool.at[blocks[:, None], heads, offsets[:, None]].set(new, mode="promise_in_bounds")


def _write_scales(scales: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """`new float32[tokens, kv_heads, 2]` in a column each."""
    blocks, offsets = jnp.divmod(slots, scales.shape[3])
    if len(new) == 1:
        zero = jnp.zeros_like(blocks[0])
        return jax.lax.dynamic_update_slice(scales, new[..., None], (blocks[0], zero, zero, offsets[0]))
    heads, sides = (jnp.arange(size, dtype=jnp.int32) for size in scales.shape[1:3])
    at = (blocks[:, None, None], heads[None, :, None], sides[None, None], offsets[:, None, None])
    return scales.at[at].set(new, mode="promise_in_bounds")


def unpack_pool(
    pages: Float[Array, "*some kv_heads block_size width"] | QuantizedKV, head_dim: int
) -> Float[Array, "*some block_size 2 kv_heads head_dim"] | QuantizedKV:
    """Blocks of a pool with their keys and values apart; of one of 8 bits, the scales without the last axis too."""
    if not isinstance(pages, QuantizedKV):
        return _unpack_rows(pages, head_dim)
    return QuantizedKV(codes=_unpack_rows(pages.codes, head_dim), scales=jnp.swapaxes(pages.scales, -1, -3))


def _unpack_rows(pages: Shaped[Array, "*some kv_heads block_size width"], head_dim: int) -> jax.Array:
    apart = pages.reshape(*pages.shape[:-1], 2, pages.shape[-1] // 2)[..., :head_dim]
    return jnp.moveaxis(apart, -4, -2)


def pad_channels(x: jax.Array, missing: int) -> jax.Array:
    """`x` with zeros behind its last axis."""
    return x if not missing else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
