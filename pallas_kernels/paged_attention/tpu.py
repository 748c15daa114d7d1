"""The TPU kernel: a grid step takes a tile of queries of some heads through the context, which it copies ahead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels.paged_attention.config import AttentionOptions, TpuConfig
from pallas_kernels.paged_attention.pool import Pool, pad_channels
from pallas_kernels.paged_attention.softmax import BEGIN, HIDDEN, LOG2E, capped, operand_dtype, visible_trips
from pallas_kernels.paged_attention.tiles import Tiles, tile_of_token

ENTRY = "paged_attention_tpu"
_LANES = 128


def attend(
    q: Float[Array, "tokens heads width"],
    pool: Pool,
    tiles: Tiles,
    batch: tuple[Int32[Array, " starts"], Int32[Array, "sequences pages"]],
    sinks: Float[Array, " heads"] | None,
    options: AttentionOptions,
    config: TpuConfig,
    *,
    interpret: bool = False,
) -> Float[Array, "tokens heads width"]:
    """Attention of the tiles' tokens, in `q.dtype`, for `batch = (query_start, block_table)`."""
    query_start, block_table = batch
    tokens, heads, width = q.shape
    kv_heads = pool[0].shape[1]
    group = heads // kv_heads
    dtype = operand_dtype(q.dtype, pool[0].dtype)
    # Where a part of a register would have to be cut out, products take keys and values as they lie: queries have
    # zeros in place of the values, and of the sums those of keys are left aside.
    joint = width % _LANES != 0
    place = jnp.minimum(tiles.first[:, None] + jnp.arange(config.size, dtype=jnp.int32)[None], tokens - 1)
    queries = q[place].astype(dtype).reshape(-1, config.size, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
    queries = _with_rows(queries.reshape(-1, kv_heads, group * config.size, width), config.rows)
    queries = pad_channels(queries, width if joint else 0)
    lengths = jnp.stack([tiles.sequence, tiles.start, tiles.count]).reshape(-1)
    out = _call(lengths, block_table, queries, pool, _sink_rows(sinks, kv_heads, config), options, config, interpret)
    out = out[:, :, : group * config.size, -width:]
    out = out.reshape(-1, kv_heads, group, config.size, width).transpose(0, 3, 1, 2, 4)
    tile, at = tile_of_token(query_start, tokens, config.size)
    return out[tile, at].reshape(q.shape).astype(q.dtype)


def _with_rows(x: jax.Array, rows: int) -> jax.Array:
    """`[..., rows, channels]`, filled up with zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows - x.shape[-2]), (0, 0)])


def _sink_rows(sinks: jax.Array | None, kv_heads: int, config: TpuConfig) -> jax.Array | None:
    """`float32[kv_heads, rows, 128]`: each row's sink, on every lane."""
    if sinks is None:
        return None
    rows = jnp.repeat(sinks.astype(jnp.float32).reshape(kv_heads, -1), config.size, axis=1)[:, :, None]
    return jnp.broadcast_to(_with_rows(rows, config.rows), (kv_heads, config.rows, _LANES))


def _call(
    lengths: jax.Array,
    block_table: jax.Array,
    queries: jax.Array,
    pool: Pool,
    sinks: jax.Array | None,
    options: AttentionOptions,
    config: TpuConfig,
    interpret: bool,
) -> jax.Array:
    """Sums of values `dtype[tiles, kv_heads, rows, channels]`, divided by those of weights; zeros for empty tiles."""
    count, kv_heads, rows, channels = queries.shape
    heads, (kv, scales) = config.heads, pool
    pools = [kv] if scales is None else [kv, scales]
    if not interpret:
        # XLA would copy a whole pool that fits into vector memory, and back.
        pools = [pltpu.with_memory_space_constraint(each, pltpu.HBM) for each in pools]
    by_tile = pl.BlockSpec((1, heads, rows, channels), lambda tile, part, *_: (tile, part, 0, 0))
    by_head = pl.BlockSpec((heads, rows, _LANES), lambda tile, part, *_: (part, 0, 0))
    kernel = functools.partial(
        _kernel,
        options=options,
        config=config,
        pages=block_table.shape[1],
        tiles=count,
        scaled=scales is not None,
        sinks=sinks is not None,
    )
    # Scales lie along lanes, so that each piece has rows of its own.
    row_buffer = pltpu.VMEM((2, config.pieces, heads, 2, config.piece), jnp.float32)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(count, kv_heads // heads),
        in_specs=[by_tile, *([] if sinks is None else [by_head]), *([pl.BlockSpec(memory_space=pl.ANY)] * len(pools))],
        out_specs=by_tile,
        scratch_shapes=[
            pltpu.VMEM((2, heads, config.piece * config.pieces, kv.shape[3]), kv.dtype),
            *([] if scales is None else [row_buffer]),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.VMEM((heads, rows, _LANES), jnp.float32),
            pltpu.VMEM((heads, rows, _LANES), jnp.float32),
            pltpu.VMEM((heads, rows, channels), jnp.float32),
        ],
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name=ENTRY,
    )(lengths, block_table.reshape(-1), queries, *([] if sinks is None else [sinks]), *pools)


def _kernel(
    lengths: Any,
    table: Any,
    queries: Any,
    *refs: Any,
    options: AttentionOptions,
    config: TpuConfig,
    pages: int,
    tiles: int,
    scaled: bool,
    sinks: bool,
) -> None:
    pools, out, buffers = refs[sinks : sinks + 1 + scaled], refs[sinks + 1 + scaled], refs[sinks + 2 + scaled : -4]
    semaphores, top, total, sums = refs[-4:]
    tile, part = pl.program_id(0), pl.program_id(1)
    sequence, start, count = (lengths[row * tiles + tile] for row in range(3))
    keys = config.piece * config.pieces
    begin, end = visible_trips(start, count, keys, options.window)
    last = start + count - 1
    oldest = jnp.int32(0) if options.window is None else start - (options.window - 1)

    row = (table, sequence * pages, pages, part)
    each_copy = functools.partial(_each_copy, (pools, buffers, semaphores), row, (oldest, last), config)

    top[...] = refs[0][...] * LOG2E if sinks else jnp.full(top.shape, BEGIN, jnp.float32)
    total[...] = jnp.full(total.shape, float(sinks), jnp.float32)
    sums[...] = jnp.zeros_like(sums)
    pl.when(begin < end)(lambda: each_copy(_start, begin, jnp.int32(0)))

    def trip(index: jax.Array, slot: jax.Array) -> jax.Array:
        pl.when(index + 1 < end)(lambda: each_copy(_start, index + 1, 1 - slot))
        each_copy(_wait, index, slot)
        seen = (oldest - index * keys, last + 1 - index * keys)
        edge = index == end - 1 if options.window is None else (index == begin) | (index == end - 1)
        if not scaled:
            pl.when(edge)(lambda: _clear(buffers[0], slot, seen, config.heads))
        add = functools.partial(
            _add_head, (queries, *buffers), (top, total, sums), slot, index * keys, start, options, config
        )
        jax.lax.fori_loop(0, config.heads, lambda head, _: add(head), None)
        return 1 - slot

    jax.lax.fori_loop(begin, end, trip, jnp.int32(0))

    def divide(head: jax.Array, _: None) -> None:
        out[0, head] = (sums[head] / jnp.maximum(total[head][:, :1], 1e-30)).astype(out.dtype)

    jax.lax.fori_loop(0, config.heads, divide, None)


def _each_copy(
    refs: tuple[Any, Any, Any],
    row: tuple[Any, jax.Array, int, jax.Array],
    span: tuple[jax.Array, jax.Array],
    config: TpuConfig,
    act: Callable[[Any], None],
    trip: jax.Array,
    slot: jax.Array,
) -> None:
    """Start, or wait for, the copies of those of a trip's pieces that any token sees, `span[0]` to `span[1]`."""
    (pools, buffers, semaphores), (table, first, pages, part), (oldest, last) = refs, row, span
    block_size = pools[0].shape[2]

    def one(at: jax.Array, _: None) -> None:
        place = pl.multiple_of(at * config.piece, config.piece)
        position = trip * config.piece * config.pieces + place
        page = table[first + jnp.minimum(position // block_size, pages - 1)]
        offset = pl.multiple_of(position % block_size, config.piece)
        own, piece = pl.ds(part * config.heads, config.heads), pl.ds(offset, config.piece)
        copies = [(pools[0].at[page, own, piece], buffers[0].at[slot, :, pl.ds(place, config.piece)])]
        if len(pools) > 1:
            # A part of a row of scales begins where a register's lanes do.
            lanes = slice(None) if config.piece == block_size else piece
            copies.append((pools[1].at[page, own, :, lanes], buffers[1].at[slot, at]))

        def each() -> None:
            for source, target in copies:
                act(pltpu.make_async_copy(source, target, semaphores.at[slot]))

        pl.when((position <= last) & (position + config.piece > oldest))(each)

    jax.lax.fori_loop(0, config.pieces, one, None)


def _start(copy: Any) -> None:
    copy.start()


def _wait(copy: Any) -> None:
    copy.wait()


def _clear(buffer: Any, slot: jax.Array, seen: tuple[jax.Array, jax.Array], heads: int) -> None:
    """Zeros outside of the positions that a token sees, where anything may lie: zero times a NaN would be one."""

    def clear(head: jax.Array, _: None) -> None:
        kv = buffer[slot, head].astype(jnp.float32)
        place = jax.lax.broadcasted_iota(jnp.int32, kv.shape, 0)
        kv = jnp.where((place >= seen[0]) & (place < seen[1]), kv, 0.0)
        buffer[slot, head] = kv.astype(buffer.dtype)

    jax.lax.fori_loop(0, heads, clear, None)


def _add_head(
    given: tuple[Any, ...],
    carried: tuple[Any, Any, Any],
    slot: jax.Array,
    first: jax.Array,
    start: jax.Array,
    options: AttentionOptions,
    config: TpuConfig,
    head: jax.Array,
) -> None:
    """One trip of one head's online softmax: rescale what was summed by the change of the running maximum."""
    (queries, buffer, *scales), (tops, totals, sums) = given, carried
    query = queries[0, head]
    kv = buffer[slot, head].astype(query.dtype)
    keys, values = kv, kv
    if query.shape[1] != kv.shape[1]:
        keys, values = kv[:, : query.shape[1]], kv[:, query.shape[1] :]
    precision = jax.lax.Precision.HIGHEST if query.dtype == jnp.float32 else None
    dot = functools.partial(jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    scores = dot(query, keys, (((1,), (1,)), ((), ())))
    if scales:
        scores *= _scale_row(scales[0], slot, head, 0, config)
    scores = capped(scores, options)
    key = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    # Rows are heads of `size` tokens each, a power of two.
    position = start + (jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) & (config.size - 1))
    visible = key <= position
    if options.window is not None:
        visible &= key > position - options.window
    scores = jnp.where(visible, scores, HIDDEN)
    top = tops[head][:, :1]
    new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
    weights = jnp.exp2(scores - new_top)
    shrink = jnp.exp2(top - new_top)
    total = totals[head][:, :1] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    tops[head] = jnp.broadcast_to(new_top, tops.shape[1:])
    totals[head] = jnp.broadcast_to(total, totals.shape[1:])
    if scales:
        # Codes are finite wherever they come from; scales that no token sees need not be.
        weights = jnp.where(visible, weights * _scale_row(scales[0], slot, head, 1, config), 0.0)
    product = dot(weights.astype(query.dtype), values, (((1,), (0,)), ((), ())))
    sums[head] = sums[head] * shrink + product


def _scale_row(buffer: Any, slot: jax.Array, head: jax.Array, side: int, config: TpuConfig) -> jax.Array:
    """`float32[1, keys]`: the scales of a trip's keys (`side` 0) or values."""
    rows = [buffer[slot, piece, head, side : side + 1] for piece in range(config.pieces)]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
