"""What paged_attention computes, densely in jnp: its derivatives are taken of this."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cpu_kernels.kv_cache import cache_kind, unpack_cache

if TYPE_CHECKING:
    from cpu_kernels.attention import AttentionOptions

__all__ = ["reference_attention"]

_MASKED = -1e30  # finite: the gradient of a softmax whose scores are all infinite is NaN


def reference_attention(
    floats: tuple[jax.Array, ...], cache: jax.Array, batch: tuple[jax.Array, ...], options: "AttentionOptions"
) -> jax.Array:
    """The output `float32[tokens, heads, head_dim]` for the same arrays, k and v unrounded; builds all scores.

    `floats = (q, k, v, cos, sin, q_norm, k_norm, sinks)`, empty where absent.
    """
    q, k, v, cos, sin, q_norm, k_norm, sinks = floats
    positions, query_start, context_lens, _ = batch
    tokens, heads, head_dim = q.shape
    index = jnp.arange(tokens)
    owner = jnp.searchsorted(query_start, index, side="right") - 1
    is_padding = index >= query_start[-1]
    owner = jnp.clip(owner, 0, context_lens.shape[0] - 1)
    # Whatever padding holds must not become NaN on the way back.
    q, k, v = (jnp.where(is_padding[:, None, None], 0, x) for x in (q, k, v))
    q, k = (_rotate(_normalise(x, w, options), cos, sin, options) for x, w in ((q, q_norm), (k, k_norm)))
    keys, values = _context(cache, batch, (k, v), jnp.where(is_padding, len(context_lens), owner), options)
    grouped = (q * options.scale).reshape(tokens, k.shape[1], -1, head_dim)
    scores = jnp.einsum("tkgd,tskd->tkgs", grouped, keys[owner], precision="highest")
    scores = scores.reshape(tokens, heads, -1)
    if options.softcap is not None:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    place = jnp.arange(scores.shape[-1])[None, :]
    seen = (place <= positions[:, None]) & (place < context_lens[owner][:, None]) & ~is_padding[:, None]
    if options.window is not None:
        seen = seen & (place > positions[:, None] - options.window)
    seen = seen[:, None, :]
    scores = jnp.where(seen, scores, _MASKED)
    if sinks.size:
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks[None, :, None], (tokens, heads, 1))], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : place.shape[1]] * seen
    weights = weights.reshape(tokens, k.shape[1], -1, place.shape[1])
    return jnp.einsum("tkgs,tskd->tkgd", weights, values[owner], precision="highest").reshape(q.shape)


def _context(
    cache: jax.Array,
    batch: tuple[jax.Array, ...],
    kv: tuple[jax.Array, jax.Array],
    owner: jax.Array,
    options: "AttentionOptions",
) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[sequences, positions, kv_heads, head_dim]`: the batch's own in place of their rounded ones.

    Zeros where nothing was written yet.
    """
    positions, _, context_lens, block_table = batch
    _, kv_heads, head_dim = kv[0].shape
    pages = unpack_cache(cache, cache_kind(cache.dtype), (options.block_size, kv_heads, head_dim))
    blocks = jax.lax.stop_gradient(pages)[block_table]
    blocks = blocks.reshape(block_table.shape[0], -1, *blocks.shape[3:])
    written = jnp.arange(blocks.shape[1])[None] < context_lens[:, None]
    blocks = jnp.where(written[:, :, None, None, None], blocks, 0)
    keys, values = (blocks[:, :, i].at[owner, positions].set(x, mode="drop") for i, x in enumerate(kv))
    return keys, values


def _normalise(x: jax.Array, weight: jax.Array, options: "AttentionOptions") -> jax.Array:
    if options.norm is None:
        return x
    channels = (-1,) if options.norm == "head" else (-2, -1)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=channels, keepdims=True) + options.norm_eps)
    return x * inverse * weight.reshape(1, -1, x.shape[-1])


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, options: "AttentionOptions") -> jax.Array:
    if options.rope_style is None:
        return x
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    half = options.rope_style == "half"
    shape = (*x.shape[:2], *((2, pairs) if half else (pairs, 2)))
    axis = 2 if half else 3
    a, b = jnp.moveaxis(turned.reshape(shape), axis, 0)
    cos, sin = cos[:, None], sin[:, None]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=axis).reshape(turned.shape)
    return jnp.concatenate([turned, rest], axis=-1)
