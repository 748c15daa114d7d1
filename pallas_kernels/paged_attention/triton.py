"""The CUDA kernel: a block takes a tile of queries of one head of keys through the part of the context that it sees."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels.paged_attention.config import AttentionOptions, TritonConfig
from pallas_kernels.paged_attention.pool import Pool
from pallas_kernels.paged_attention.softmax import BEGIN, HIDDEN, LOG2E, capped, operand_dtype, visible_trips
from pallas_kernels.paged_attention.tiles import Tiles

ENTRY = "paged_attention_triton"


def attend(
    q: Float[Array, "tokens heads width"],
    pool: Pool,
    tiles: Tiles,
    block_table: Int32[Array, "sequences pages"],
    sinks: Float[Array, " heads"] | None,
    options: AttentionOptions,
    config: TritonConfig,
    *,
    interpret: bool = False,
) -> Float[Array, "tokens heads width"]:
    """Attention of the tiles' tokens, in `q.dtype`; rows of tokens that no tile has are not written."""
    rows, scales = pool
    kernel = functools.partial(
        _kernel,
        options=options,
        config=config,
        group=q.shape[1] // rows.shape[1],
        scaled=scales is not None,
        sinks=sinks is not None,
    )
    splits = config.splits
    each = (splits, *q.shape[:2])
    results = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    if splits > 1:
        results = [jax.ShapeDtypeStruct((*each, *extra), jnp.float32) for extra in ((q.shape[2],), (), ())]
    call = pl.pallas_call(
        kernel,
        out_shape=results,
        grid=(tiles.first.shape[0], rows.shape[1], splits),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=ENTRY,
    )
    given = [*([] if scales is None else [scales]), *([] if sinks is None else [sinks.astype(jnp.float32)])]
    out = call(tiles.sequence, tiles.first, tiles.count, tiles.start, block_table, q, rows, *given)
    return out[0] if splits == 1 else _merged(*out).astype(q.dtype)


def _merged(out: jax.Array, top: jax.Array, total: jax.Array) -> jax.Array:
    """The parts of each context put together, in their order."""
    weights = jnp.exp2(top - jnp.max(top, axis=0, keepdims=True))
    whole = jnp.maximum(jnp.sum(weights * total, axis=0), 1e-30)
    return jnp.sum(weights[..., None] * out, axis=0) / whole[..., None]


def _kernel(
    sequences: Any,
    firsts: Any,
    counts: Any,
    starts: Any,
    table: Any,
    q: Any,
    pool: Any,
    *refs: Any,
    options: AttentionOptions,
    config: TritonConfig,
    group: int,
    scaled: bool,
    sinks: bool,
) -> None:
    scales, refs = (refs[0], refs[1:]) if scaled else (None, refs)
    tile, head, split = (pl.program_id(axis) for axis in range(3))
    first, count, start = firsts[tile], counts[tile], starts[tile]
    row = jnp.arange(config.rows, dtype=jnp.int32)
    # A tile has as many tokens as fit; rows that are left over have places of no token.
    place = row // group
    token, query_head = first + place, head * group + row % group
    own = place < jnp.minimum(count, config.rows // group)
    position = start + place
    parts = channel_parts(q.shape[2])
    dtype = operand_dtype(q.dtype, pool.dtype)
    queries = [
        plgpu.load(q.at[token[:, None], query_head[:, None], _channels(*part)], mask=own[:, None], other=0.0).astype(
            dtype
        )
        for part in parts
    ]
    top, total = jnp.full(config.rows, BEGIN, jnp.float32), jnp.zeros(config.rows, jnp.float32)
    if sinks:
        sink = plgpu.load(refs[0].at[query_head], mask=own, other=0.0) * LOG2E
        top, total = jnp.where(split == 0, sink, top), jnp.where(split == 0, 1.0, total)
    begin, end = visible_trips(start, count, config.keys, options.window)
    share = -(-(end - begin) // config.splits)
    begin += split * share
    place, span = (table, sequences[tile], pool, scales, head), (start, start + count)
    trip = functools.partial(_trip, place, queries, position, span, parts, options, config)
    out = tuple(jnp.zeros((config.rows, size), jnp.float32) for _, size in parts)
    top, total, out = jax.lax.fori_loop(begin, jnp.minimum(begin + share, end), trip, (top, total, out))
    refs = refs[sinks:]
    if config.splits == 1:
        for part, x in zip(parts, out, strict=True):
            at = refs[0].at[token[:, None], query_head[:, None], _channels(*part)]
            plgpu.store(at, (x / total[:, None]).astype(q.dtype), mask=own[:, None])
        return
    for part, x in zip(parts, out, strict=True):
        plgpu.store(refs[0].at[split, token[:, None], query_head[:, None], _channels(*part)], x, mask=own[:, None])
    plgpu.store(refs[1].at[split, token, query_head], top, mask=own)
    plgpu.store(refs[2].at[split, token, query_head], total, mask=own)


def _trip(
    place: tuple[Any, jax.Array, Any, Any, jax.Array],
    queries: list[jax.Array],
    position: jax.Array,
    span: tuple[jax.Array, jax.Array],
    parts: list[tuple[int, int]],
    options: AttentionOptions,
    config: TritonConfig,
    index: jax.Array,
    carry: tuple[jax.Array, jax.Array, tuple[jax.Array, ...]],
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """One trip of the online softmax: rescale what was summed by the change of the running maximum."""
    table, sequence, pool, scales, head = place
    top, total, out = carry
    width = pool.shape[3] // 2
    first = index * config.keys
    page, offset = table[sequence, first // pool.shape[2]], first % pool.shape[2]
    key = first + jnp.arange(config.keys, dtype=jnp.int32)
    # Where no token of the tile looks anything may lie: zero times a NaN would be one.
    written = key < span[1]
    if options.window is not None:
        written &= key > span[0] - options.window
    precision = jax.lax.Precision.HIGHEST if pool.dtype == jnp.float32 else None
    products = []
    for query, (begin, size) in zip(queries, parts, strict=True):
        keys = pool[page, head, pl.ds(offset, config.keys), pl.ds(begin, size)].astype(query.dtype)
        products.append(jnp.dot(query, keys.T, precision=precision, preferred_element_type=jnp.float32))
    scores = functools.reduce(jnp.add, products)
    if scales is not None:
        scores *= scales[page, head, pl.ds(0, 1), pl.ds(offset, config.keys)]
    scores = capped(scores, options)
    visible = key[None, :] <= position[:, None]
    if options.window is not None:
        visible &= key[None, :] > position[:, None] - options.window
    scores = jnp.where(visible, scores, HIDDEN)
    new_top = jnp.maximum(top, jnp.max(scores, axis=1))
    weights = jnp.exp2(scores - new_top[:, None])
    shrink = jnp.exp2(top - new_top)
    total = total * shrink + jnp.sum(weights, axis=1)
    if scales is not None:
        at = scales.at[page, head, pl.ds(1, 1), pl.ds(offset, config.keys)]
        weights *= plgpu.load(at, mask=written[None, :], other=0.0)
    weights = weights.astype(queries[0].dtype)
    sums = []
    for x, (begin, size) in zip(out, parts, strict=True):
        at = pool.at[page, head, pl.ds(offset, config.keys), pl.ds(width + begin, size)]
        values = plgpu.load(at, mask=written[:, None], other=0.0).astype(weights.dtype)
        product = jnp.dot(weights, values, precision=precision, preferred_element_type=jnp.float32)
        sums.append(x * shrink[:, None] + product)
    return new_top, total, tuple(sums)


def channel_parts(width: int) -> list[tuple[int, int]]:
    """Where parts of a head's channels begin, and their sizes: powers of two, as blocks of values have to be."""
    parts, begin = [], 0
    while begin < width:
        size = 1 << ((width - begin).bit_length() - 1)
        parts.append((begin, size))
        begin += size
    return parts


def _channels(begin: int, size: int) -> jax.Array:
    return (begin + jnp.arange(size, dtype=jnp.int32))[None, :]
