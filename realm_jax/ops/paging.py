"""The paged KV cache: how a ragged batch of tokens addresses it, and the in-place write."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from pallas_kernels.paged_attention import QuantizedKV, dequantize, quantize

KVCache = Array | QuantizedKV
"""A layer's cache: one array, or where an implementation of JAX's keeps 8 bits, codes and scales."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PagedBatch:
    """Which tokens of a ragged batch belong to which sequence, and where their keys and values lie.

    `positions[T]`; `slots[T]`: block * block_size + offset, the null block 0 for padding; `query_start[B + 1]`: tokens
    of sequence b are `query_start[b]:query_start[b + 1]`, padding lies behind the last; `context_lens[B]`: positions
    each sequence has after this batch; `block_table[B, P]`. All int32.
    """

    positions: Any
    slots: Any
    query_start: Any
    context_lens: Any
    block_table: Any


def write_kv(
    cache: Float[Array, "blocks block_size 2 kv_heads head_dim"] | QuantizedKV,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    batch: PagedBatch,
) -> Float[Array, "blocks block_size 2 kv_heads head_dim"] | QuantizedKV:
    """The cache with the batch's keys and values at their slots; in place where the cache is donated.

    The scales of a cache of 8 bits have the axes of its codes without the last.
    """
    new = jnp.stack([k, v], axis=1)
    if isinstance(cache, QuantizedKV):
        kv = quantize(new)
        return QuantizedKV(
            codes=_write(cache.codes, kv.codes, batch.slots), scales=_write(cache.scales, kv.scales, batch.slots)
        )
    return _write(cache, new.astype(cache.dtype), batch.slots)


def _write(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """`new[tokens, ...]` at slots of `cache[blocks, block_size, ...]`."""
    if len(new) == 1:
        # XLA copies the whole cache for a scatter of one row, or for an update of the flattened view.
        block, offset = jnp.divmod(slots[0], cache.shape[1])
        zero = jnp.zeros_like(block)
        return jax.lax.dynamic_update_slice(cache, new[None], (block, offset, *[zero] * (cache.ndim - 2)))
    # A scatter into the flattened view would copy the cache where it has one head, whose axis XLA may lay out anywhere.
    blocks, offsets = jnp.divmod(slots, cache.shape[1])
    return cache.at[blocks, offsets].set(new, mode="promise_in_bounds")


def read_blocks(
    cache: Float[Array, "blocks block_size 2 kv_heads head_dim"] | QuantizedKV, blocks: Int[Array, "*some"]
) -> Float32[Array, "*some block_size 2 kv_heads head_dim"]:
    """What some blocks of the cache hold."""
    if isinstance(cache, QuantizedKV):
        return dequantize(QuantizedKV(codes=cache.codes[blocks], scales=cache.scales[blocks]))
    return cache[blocks].astype(jnp.float32)
