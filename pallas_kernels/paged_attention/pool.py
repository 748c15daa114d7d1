"""The pool that keeps a layer's keys and values for the kernels, the write to it, and its contents as plain arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

# The fewest channels, and the fewest positions of a block, that a product on the matrix units takes.
LEAST = 16

# A pool is one array [blocks, kv_heads, block_size, 2 * width], where width is head_dim filled up to a multiple of 16:
#
#   block, head    position 0    k_0 ... k_(width - 1)  v_0 ... v_(width - 1)
#                  position 1    k_0 ... k_(width - 1)  v_0 ... v_(width - 1)
#                  ...
#
# What a kernel reads of a block for one head is contiguous, on a TPU one copy of whole registers: keys of 64 channels
# and their values fill its 128 lanes together.


def pool_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """The shape of a pool.

    Raises:
        ValueError: a block size that no multiple of 16 is.
    """
    if block_size < LEAST or block_size % LEAST:
        raise ValueError(f"block_size must be a multiple of {LEAST} for Pallas kernels, got {block_size}")
    return (num_blocks, kv_heads, block_size, 2 * padded(head_dim))


def padded(head_dim: int) -> int:
    """The channels that a head has in a pool."""
    return -(-head_dim // LEAST) * LEAST


def write_pool(
    pool: Float[Array, "blocks kv_heads block_size width"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slots: Int32[Array, " tokens"],
) -> Float[Array, "blocks kv_heads block_size width"]:
    """The pool with k and v at slots `block * block_size + offset`; in place where the pool is donated."""
    missing = pool.shape[-1] // 2 - k.shape[-1]
    new = jnp.concatenate([pad_channels(x.astype(pool.dtype), missing) for x in (k, v)], axis=-1)
    blocks, offsets = jnp.divmod(slots, pool.shape[2])
    if len(new) == 1:
        # XLA's CPU backend copies the whole pool for a scatter of one row.
        zero = jnp.zeros_like(blocks[0])
        return jax.lax.dynamic_update_slice(pool, new[:, :, None], (blocks[0], zero, offsets[0], zero))
    # Heads are indexed as well: a scatter over axes that do not come first would transpose the pool.
    heads = jnp.arange(pool.shape[1], dtype=jnp.int32)[None]
    return pool.at[blocks[:, None], heads, offsets[:, None]].set(new, mode="promise_in_bounds")


def unpack_pool(
    pages: Float[Array, "*some kv_heads block_size width"], head_dim: int
) -> Float[Array, "*some block_size 2 kv_heads head_dim"]:
    """Blocks of a pool with their keys and values apart."""
    apart = pages.reshape(*pages.shape[:-1], 2, pages.shape[-1] // 2)[..., :head_dim]
    return jnp.moveaxis(apart, -4, -2)


def pad_channels(x: jax.Array, missing: int) -> jax.Array:
    """`x` with zeros behind its last axis."""
    return x if not missing else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
