"""Attention through the native CPU kernels: by itself, and with the products around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

import cpu_kernels
from pallas_kernels.paged_attention import QuantizedKV
from realm_jax.ops.backends import instruction_set_of
from realm_jax.ops.heads import HeadTransform
from realm_jax.ops.kv_cache import native_block_size
from realm_jax.ops.paging import KVCache, PagedBatch
from realm_jax.ops.projection import LinearMap, Rms, packed_maps
from realm_jax.sharding import current_mesh

if TYPE_CHECKING:
    from realm_jax.ops.attention import AttentionSpec


def native_attention(
    qkv: tuple[Array, Array, Array],
    cache: Array,
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Array | None,
    transform: HeadTransform,
    implementation: str | None,
) -> tuple[Float[Array, "tokens heads head_dim"], Array]:
    """`cached_attention` through native kernels."""
    options, arrays = _arguments(cache, batch, spec, transform, qkv[0].shape[-1])
    return cpu_kernels.paged_attention(
        qkv,
        cache,
        arrays.batch,
        options,
        rope=arrays.rope,
        norms=arrays.norms,
        sinks=sinks,
        instruction_set=instruction_set_of(implementation),
    )


def attention_block(
    x: Float[Array, "tokens hidden"],
    maps: tuple[LinearMap, LinearMap, LinearMap, LinearMap],
    cache: KVCache,
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    norm: Rms | None,
    transform: HeadTransform,
    sinks: Float[Array, " heads"] | None,
    scale: float,
    post_norm: Rms | None,
    implementation: str | None,
) -> tuple[Float[Array, "tokens hidden"], KVCache] | None:
    """`x + scale * post_norm(o(attention(q(norm(x)), k(norm(x)), v(norm(x)))))` and the cache; `maps = (q, k, v, o)`.

    None where the implementation has no such operation: then `project`, `cached_attention` and `project_add`, one after
    the other, are the same.
    """
    packed = None if current_mesh() is not None or x.dtype != jnp.float32 else packed_maps(maps, implementation)
    if packed is None:
        return None
    assert not isinstance(cache, QuantizedKV)
    *qkv, out = packed
    options, arrays = _arguments(cache, batch, spec, transform, qkv[1].shape[0] // cache.shape[1])
    return cpu_kernels.attention_block(
        x,
        (qkv[0], qkv[1], qkv[2]),
        out,
        cache,
        arrays.batch,
        options,
        norm=norm,
        rope=arrays.rope,
        head_norms=arrays.norms,
        sinks=sinks,
        scale=scale,
        post_norm=post_norm,
        instruction_set=instruction_set_of(implementation),
    )


class _Arrays(NamedTuple):
    batch: tuple[Array, Array, Array, Array]
    rope: tuple[Array, Array] | None
    norms: tuple[Array, Array] | None


def _arguments(
    cache: Array, batch: PagedBatch, spec: AttentionSpec, transform: HeadTransform, head_dim: int
) -> tuple[cpu_kernels.AttentionOptions, _Arrays]:
    norms, table = transform.norms, transform.table
    options = cpu_kernels.AttentionOptions(
        block_size=native_block_size(cache, head_dim),
        scale=spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        rope_style=transform.style,
        norm=transform.norm,
        norm_eps=norms[0].eps if norms else 0.0,
    )
    return options, _Arrays(
        batch=(batch.positions, batch.query_start, batch.context_lens, batch.block_table),
        rope=None if transform.style is None or table is None else (table.cos, table.sin),
        norms=(norms[0].weight, norms[1].weight) if norms else None,
    )
