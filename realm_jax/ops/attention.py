"""Attention over the paged KV cache: an online softmax over chunks, and the dense form that shows its pattern."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pallas_kernels import paged_attention as kernels
from pallas_kernels.paged_attention import QuantizedKV
from realm_jax.ops import mlx
from realm_jax.ops.backends import is_metal, is_native, pallas_backend
from realm_jax.ops.heads import HeadTransform
from realm_jax.ops.kv_cache import kv_cache_split, read_kv
from realm_jax.ops.native_attention import native_attention
from realm_jax.ops.paging import KVCache, PagedBatch, read_blocks, write_kv
from realm_jax.sharding import Split, current_mesh, parts, split_axes

# Keys read per step of the online softmax, and query tokens that share one read of them. Temporaries of a
# Llama-8B layer stay below 256 MB at 512 tokens with these (a test checks).
_CHUNK = 256
_TILE = 64

# What the keys and values of a step may take where MLX's kernel is given all of them at once.
_AT_ONCE_BYTES = 2**28

_MASKED = -1e30  # finite: a row whose first chunks are all masked must not meet inf - inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """The static part of an attention: `softmax(softcap(scale q k)) v` under a causal mask and a window.

    `window` w lets position p see (p - w, p]; `softcap` c maps a score s to c tanh(s / c).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Groups of up to Q query tokens of one sequence: `sequence[n]`, `token[n, Q]`, and `of_token[T]`, `at[T]`."""

    sequence: Any
    token: Any
    of_token: Any
    at: Any


def cached_attention(
    qkv: tuple[Array, Array, Array],
    cache: KVCache,
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    sinks: Float[Array, " heads"] | None = None,
    transform: HeadTransform | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "tokens heads head_dim"], KVCache]:
    """Transform q and k, write k and v `[tokens, kv_heads, head_dim]` to the cache, attend with q.

    Equals `paged_attention(q, write_kv(cache, k, v, batch), ...)` after `q, k = transform(q, k)`, and returns the
    written cache too. One operation: an implementation that updates the cache in place must not meet a reader of the
    old one. `cache` is a `kv_cache_array` of the implementation.

    Natively, and through a cache of 8 bits, nothing flows backward: keys and values of earlier calls are constants
    there, and those of this call count as they are, not rounded. Derivatives of the Pallas kernels are those of the
    reference on the same cache.
    """
    if (sizes := current_mesh()) is not None:
        by_heads = partial(_attention_by_heads, sizes, implementation=implementation)
        return by_heads(qkv, cache, batch, spec, sinks, transform or HeadTransform())
    if is_native(implementation):
        assert not isinstance(cache, QuantizedKV)
        return native_attention(qkv, cache, batch, spec, sinks, transform or HeadTransform(), implementation)
    q, k, v = qkv
    if transform is not None:
        q, k = transform(q, k, implementation=implementation)
    if pallas_backend(implementation) is not None:
        return _attend_kernels((q, k, v), cache, batch, spec, sinks, implementation)
    return _attend_reference((q, k, v), cache, batch, spec, sinks, metal=is_metal(implementation))


def _attend_kernels(
    qkv: tuple[Array, Array, Array],
    cache: KVCache,
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Array | None,
    implementation: str | None,
    share: Any = None,
) -> tuple[Array, KVCache]:
    """Through the Pallas kernels; with a `share`, axes of the mesh inside shard_map, for a device's own queries."""
    cache = kernels.write_pool(cache, qkv[1], qkv[2], batch.slots)
    if isinstance(cache, QuantizedKV):
        return _attend_codes(spec, implementation, share, qkv, cache, sinks, batch), cache
    return _attend_pool(spec, implementation, share, qkv[0], cache, sinks, batch), cache


def _attend_reference(
    qkv: tuple[Array, Array, Array],
    cache: KVCache,
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Array | None,
    share: Any = None,
    metal: bool = False,
) -> tuple[Array, KVCache]:
    q, k, v = qkv
    cache = write_kv(cache, k, v, batch)
    if isinstance(cache, QuantizedKV):
        return _attend_codes(spec, None, share, qkv, cache, sinks, batch), cache
    if metal:
        return _metal_attention(q, cache, batch, spec, sinks), cache
    return paged_attention(q, cache, batch, spec, sinks, share=share), cache


def _metal_attention(
    q: jax.Array, cache: jax.Array, batch: PagedBatch, spec: AttentionSpec, sinks: jax.Array | None
) -> jax.Array:
    """`paged_attention`: decoding without a loop or a branch, each of which would have the host wait for the GPU.

    A token is a row of MLX's kernel for each head, over all blocks of its table; queries that share keys are that
    row's queries. The kernel has no soft-cap and no sinks. Where it does not serve, chunks are read in a loop.
    """
    (tokens, heads, head_dim), (block_size, kv_heads) = q.shape, (cache.shape[1], cache.shape[3])
    sequences, pages = batch.block_table.shape
    fits = tokens * pages * block_size * 2 * kv_heads * head_dim * 4 <= _AT_ONCE_BYTES
    if tokens > sequences or not fits or spec.softcap is not None or sinks is not None:
        return paged_attention(q, cache, batch, spec, sinks, skip_unseen=False)
    sequence = sequence_of_token(batch.query_start, tokens)
    own = dataclasses.replace(batch, block_table=batch.block_table[sequence])
    k, v = (jnp.swapaxes(part, 1, 2) for part in read_kv(cache, own, head_dim))
    keys = jnp.arange(pages * block_size)[None]
    visible = _visible(batch.positions[:, None], keys, batch.context_lens[sequence][:, None, None], spec)
    grouped = q.reshape(tokens, kv_heads, heads // kv_heads, head_dim)
    return mlx.attention(grouped, k, v, visible[:, None], spec.scale).reshape(q.shape).astype(q.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _attend_pool(
    spec: AttentionSpec,
    implementation: str | None,
    share: Any,
    q: jax.Array,
    pool: KVCache,
    sinks: jax.Array | None,
    batch: PagedBatch,
) -> jax.Array:
    """`paged_attention` over the pool of the Pallas kernels, by them; with a `share` of a device's own tokens."""
    chosen = pallas_backend(implementation)
    assert chosen is not None
    backend, interpret = chosen
    q, batch = _own_tokens(q, batch, share)
    arrays = (batch.positions, batch.query_start, batch.block_table)
    options = kernels.AttentionOptions(scale=spec.scale, window=spec.window, softcap=spec.softcap)
    return kernels.paged_attention(q, pool, arrays, options, backend=backend, sinks=sinks, interpret=interpret)


@_attend_pool.defjvp
def _attend_pool_jvp(
    spec: AttentionSpec,
    implementation: str | None,
    share: Any,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    *given, batch = primals

    def reference(q: jax.Array, pool: jax.Array, sinks: jax.Array | None) -> jax.Array:
        own, own_batch = _own_tokens(q, batch, share)
        return paged_attention(own, kernels.unpack_pool(pool, q.shape[-1]), own_batch, spec, sinks)

    _, tangent = jax.jvp(reference, tuple(given), tuple(tangents[:3]))
    return _attend_pool(spec, implementation, share, *primals), tangent


def _own_tokens(q: jax.Array, batch: PagedBatch, share: Any) -> tuple[jax.Array, PagedBatch]:
    """The tokens of which a device has its share of the queries, and the batch as if there were no others."""
    if share is None:
        return q, batch
    count = len(q) // parts(share)
    begin = jax.lax.axis_index(share) * count
    positions = jax.lax.dynamic_slice_in_dim(batch.positions, begin, count)
    query_start = jnp.clip(batch.query_start - begin, 0, count)
    own = dataclasses.replace(batch, positions=positions, query_start=query_start)
    return jax.lax.dynamic_slice_in_dim(q, begin, count), own


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _attend_codes(
    spec: AttentionSpec,
    implementation: str | None,
    share: Any,
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    cache: QuantizedKV,
    sinks: jax.Array | None,
    batch: PagedBatch,
) -> jax.Array:
    """Attention of q over a cache of 8 bits that k and v are in."""
    if pallas_backend(implementation) is not None:
        return _attend_pool(spec, implementation, share, qkv[0], cache, sinks, batch)
    return paged_attention(qkv[0], cache, batch, spec, sinks, share=share)


@_attend_codes.defjvp
def _attend_codes_jvp(
    spec: AttentionSpec,
    implementation: str | None,
    share: Any,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    """Codes have no derivatives: k and v take their places."""
    qkv, cache, sinks, batch = primals
    pallas = pallas_backend(implementation) is not None
    pages = kernels.unpack_pool(cache, qkv[0].shape[-1]) if pallas else cache
    floats = read_blocks(pages, jnp.arange(len(cache.codes)))

    def reference(qkv: tuple[jax.Array, ...], sinks: jax.Array | None) -> jax.Array:
        q, k, v = qkv
        written = write_kv(floats, k, v, batch)
        if not pallas:
            return paged_attention(q, written, batch, spec, sinks, share=share)
        own, own_batch = _own_tokens(q, batch, share)
        return paged_attention(own, written, own_batch, spec, sinks)

    _, tangent = jax.jvp(reference, (qkv, sinks), (tangents[0], tangents[2]))
    return _attend_codes(spec, implementation, share, *primals), tangent


def _attention_by_heads(
    sizes: Mapping[str, int],
    qkv: tuple[Array, Array, Array],
    cache: KVCache,
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Array | None,
    transform: HeadTransform,
    implementation: str | None,
) -> tuple[Array, KVCache]:
    """Each device writes and reads the keys of its own heads; nothing travels but what the tokens' split asks for.

    All devices of a part of the heads write all tokens. In the reference and with Pallas kernels each then attends with
    its share of the queries, see `split_queries`; the native kernels attend with all of them.
    """
    native, pallas = is_native(implementation), pallas_backend(implementation) is not None
    by_block = jax.tree.map(
        lambda array: PartitionSpec(*kv_cache_split(array.shape, sizes, implementation=implementation)), cache
    )
    heads, share = split_queries(qkv[1].shape[1], len(qkv[0]), sizes)
    if transform.norm == "full" or not native:
        q, k = transform(qkv[0], qkv[1])
        qkv, transform = (q, k, qkv[2]), HeadTransform()
    rotation = None if transform.table is None else (transform.table.cos, transform.table.sin)
    norms = None if not transform.norms else tuple(norm.weight for norm in transform.norms)

    def local(qkv: Any, cache: Any, batch: PagedBatch, sinks: Any, rotation: Any, norms: Any) -> Any:
        if native:
            own = transform.around(rotation, norms)
            return native_attention(qkv, cache, batch, spec, sinks, own, implementation)
        if pallas:
            return _attend_kernels(qkv, cache, batch, spec, sinks, implementation, share)
        return _attend_reference(qkv, cache, batch, spec, sinks, share)

    by_head = PartitionSpec(None, heads, None)
    given = (by_head, by_block, PartitionSpec(), PartitionSpec(heads), PartitionSpec(), PartitionSpec())
    made = PartitionSpec(share if pallas else None, heads, None)
    mapped = jax.shard_map(local, in_specs=given, out_specs=(made, by_block), check_vma=False)
    return mapped(qkv, cache, batch, sinks, rotation, norms)


def split_queries(kv_heads: int, tokens: int, sizes: Mapping[str, int]) -> Split:
    """The mesh axes that heads are split over, and those that tokens are: the devices that have the same heads."""
    return split_axes(("kv_heads", "queries"), (kv_heads, tokens), sizes)


def paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    cache: Float[Array, "blocks block_size 2 kv_heads head_dim"] | QuantizedKV,
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Float[Array, " heads"] | None = None,
    *,
    share: Any = None,
    skip_unseen: bool = True,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of a ragged batch whose keys and values are already in the cache.

    Equals `attend_with_pattern(attention_pattern(...))`, but never builds a `[tokens, context]` array. `sinks[h]` adds
    a logit without a value to head h's softmax. The result of padding tokens has no meaning. `share`: axes of
    the mesh, inside shard_map, whose devices take equal shares of the queries. `skip_unseen`: whether a chunk that no
    query sees is left out by a branch; it adds zeros. Source: the online softmax of Milakov and Gimelshein, 2018.
    """
    tokens, heads, head_dim = q.shape
    _, block_size, _, kv_heads = (cache.codes if isinstance(cache, QuantizedKV) else cache).shape[:4]
    sequences, pages = batch.block_table.shape
    tiles = _tiles(batch.query_start, tokens, 1 if tokens <= sequences else _TILE, parts(share))
    own_token, own_sequence = _own_share(tiles.token, share), _own_share(tiles.sequence, share)
    group = heads // kv_heads
    queries = q[own_token].astype(jnp.float32).reshape(*own_token.shape, kv_heads, group, head_dim)
    positions = batch.positions[own_token]
    tables, context = batch.block_table[own_sequence], batch.context_lens[own_sequence]
    chunk_blocks = min(max(_CHUNK // block_size, 1), pages)
    first, trips = _chunk_range(positions, spec, chunk_blocks * block_size, math.ceil(pages / chunk_blocks))

    def step(carry: tuple[jax.Array, ...], trip: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        block = (first + trip)[:, None] * chunk_blocks + jnp.arange(chunk_blocks)[None, :]
        key_position = (block[:, :, None] * block_size + jnp.arange(block_size)[None, None]).reshape(len(block), -1)
        visible = _visible(positions, key_position, context[:, None, None], spec)

        def read(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            page = jnp.take_along_axis(tables, jnp.minimum(block, pages - 1), axis=1)
            kv = read_blocks(cache, page).reshape(page.shape[0], -1, 2, kv_heads, head_dim)
            return _accumulate(carry, queries, kv, visible, spec)

        # Block tables are padded to a bucket's width: chunks that nobody sees are skipped.
        return jax.lax.cond(jnp.any(visible), read, lambda same: same, carry) if skip_unseen else read(carry), None

    start = _initial(queries, sinks)
    (_, total, out), _ = jax.lax.scan(jax.checkpoint(step), start, jnp.arange(trips))
    out = (out / jnp.maximum(total, 1e-30)[..., None]).reshape(*own_token.shape, heads, head_dim)
    if share is not None:
        out = jax.lax.all_gather(out, share, tiled=True)
    return out[tiles.of_token, tiles.at].astype(q.dtype)


def attention_pattern(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "sequences context kv_heads head_dim"],
    batch: PagedBatch,
    spec: AttentionSpec,
    sinks: Float[Array, " heads"] | None = None,
) -> Float[Array, "tokens heads context"]:
    """The probabilities themselves, in float32, over all positions of `k`, which `read_kv` returns.

    Rows sum to one, or to less with sinks. Costs `tokens * heads * context`: for looking inside, not for serving.
    """
    kv_heads = k.shape[2]
    grouped = q.astype(jnp.float32).reshape(q.shape[0], kv_heads, -1, q.shape[2])
    sequence = sequence_of_token(batch.query_start, q.shape[0])
    scores = _capped(jnp.einsum("tkgd,tskd->tkgs", grouped, k[sequence], precision="highest"), spec)
    scores = scores.reshape(q.shape[0], q.shape[1], -1)
    visible = _visible(
        batch.positions[:, None], jnp.arange(scores.shape[-1])[None], batch.context_lens[sequence][:, None, None], spec
    )
    scores = jnp.where(visible, scores, _MASKED)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    sink = jnp.broadcast_to(sinks[None, :, None], (*scores.shape[:2], 1))
    return jax.nn.softmax(jnp.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]


def attend_with_pattern(
    pattern: Float[Array, "tokens heads context"],
    v: Float[Array, "sequences context kv_heads head_dim"],
    batch: PagedBatch,
) -> Float[Array, "tokens heads head_dim"]:
    """`pattern @ v`, for patterns that were looked at or replaced."""
    tokens, heads, context = pattern.shape
    sequence = sequence_of_token(batch.query_start, tokens)
    grouped = pattern.reshape(tokens, v.shape[2], -1, context)
    out = jnp.einsum("tkgs,tskd->tkgd", grouped, v[sequence], precision="highest")
    return out.reshape(tokens, heads, -1)


def sequence_of_token(query_start: Int[Array, " starts"], tokens: int) -> Int[Array, " tokens"]:
    """The sequence of each token; padding counts to the last one."""
    owner = _count_up_to(query_start, tokens) - 1
    return jnp.clip(owner, 0, query_start.shape[0] - 2).astype(jnp.int32)


def _count_up_to(ascending: jax.Array, count: int) -> jax.Array:
    """How many of the integers are at most i, for i below `count`: a search without a loop."""
    return jnp.searchsorted(ascending, jnp.arange(count), side="right", method="compare_all")


def _own_share(tiles: jax.Array, share: Any) -> jax.Array:
    if share is None:
        return tiles
    count = tiles.shape[0] // parts(share)
    return jax.lax.dynamic_slice_in_dim(tiles, jax.lax.axis_index(share) * count, count)


def _tiles(query_start: jax.Array, tokens: int, size: int, shares: int) -> _Tiles:
    """Cut each sequence's tokens into tiles of `size`: B partly filled ones at most, so n = T // size + B.

    More are added, of the last sequence, until `shares` divides n.
    """
    lengths = jnp.diff(query_start)
    sequences = lengths.shape[0]
    count = -(-(tokens if size == 1 else tokens // size + sequences) // shares) * shares
    ends = jnp.cumsum(-(-lengths // size))
    starts = ends - (-(-lengths // size))
    sequence = jnp.clip(_count_up_to(ends, count), 0, sequences - 1)
    local = (jnp.arange(count) - starts[sequence])[:, None] * size + jnp.arange(size)[None, :]
    # A partly filled tile repeats its own last token, so that its positions bound what the tile reads.
    token = jnp.minimum(query_start[sequence][:, None] + local, query_start[sequence + 1][:, None] - 1)
    owner = sequence_of_token(query_start, tokens)
    offset = jnp.arange(tokens) - query_start[owner]
    of_token = jnp.clip(starts[owner] + offset // size, 0, count - 1)
    return _Tiles(sequence, jnp.clip(token, 0, tokens - 1), of_token, offset % size)


def _chunk_range(positions: jax.Array, spec: AttentionSpec, chunk: int, chunks: int) -> tuple[jax.Array, int]:
    """The first chunk each tile reads, and how many: a window never reads what lies wholly behind it."""
    if spec.window is None:
        return jnp.zeros(positions.shape[0], jnp.int32), chunks
    first = jnp.maximum(jnp.min(positions, axis=1) - spec.window + 1, 0) // chunk
    return first, min(chunks, (spec.window + positions.shape[1] - 2) // chunk + 2)


def _visible(query: jax.Array, key: jax.Array, context: jax.Array, spec: AttentionSpec) -> jax.Array:
    """`bool[n, Q, C]`: which of C keys each of Q queries may see."""
    query, key = query[:, :, None], key[:, None, :]
    seen = (key <= query) & (key < context)
    return seen if spec.window is None else seen & (key > query - spec.window)


def _capped(scores: jax.Array, spec: AttentionSpec) -> jax.Array:
    scores = scores * spec.scale
    return scores if spec.softcap is None else spec.softcap * jnp.tanh(scores / spec.softcap)


def _initial(queries: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Running maximum, sum and weighted values before any key; a sink is a key whose value is zero."""
    rows = queries.shape[:-1]
    if sinks is None:
        top, total = jnp.full(rows, _MASKED), jnp.zeros(rows)
    else:
        top = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(1, 1, *rows[2:]), rows)
        total = jnp.ones(rows)
    return top, total, jnp.zeros(queries.shape)


def _accumulate(
    carry: tuple[jax.Array, ...], queries: jax.Array, kv: jax.Array, visible: jax.Array, spec: AttentionSpec
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One chunk of the online softmax: rescale what was summed by the change of the running maximum."""
    top, total, out = carry
    scores = _capped(jnp.einsum("nqkgd,nckd->nqkgc", queries, kv[:, :, 0], precision="highest"), spec)
    mask = visible[:, :, None, None, :]
    scores = jnp.where(mask, scores, _MASKED)
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
    shrink = jnp.exp(top - new_top)
    weighted = jnp.einsum("nqkgc,nckd->nqkgd", weights, kv[:, :, 1], precision="highest")
    return new_top, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + weighted
