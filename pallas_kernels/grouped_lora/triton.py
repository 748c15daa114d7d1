"""The CUDA kernels: one multiplies tokens by A, splitting what it sums over, the other their sums by B.

Both find a block's tokens by their indices and its adapter by its own, so that nothing is copied beside them. Between
them lies `[splits, blocks, rows, rank]` in float32: one kernel for both would read A again for every tile of outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Float32

from pallas_kernels.grouped_lora.config import TritonConfig
from pallas_kernels.grouped_lora.dot import dot
from pallas_kernels.routing import Routing

SHRINK_ENTRY = "grouped_lora_shrink"
EXPAND_ENTRY = "grouped_lora_expand"


def multiply(
    x: Float[Array, "tokens columns"],
    a: Float[Array, "adapters rank columns"],
    b: Float[Array, "adapters outputs rank"],
    scale: Float32[Array, " adapters"],
    routing: Routing,
    config: TritonConfig,
    *,
    interpret: bool = False,
) -> Float[Array, "tokens outputs"]:
    """`scale[e] (x[t] A[e]^T) B[e]^T` for the adapter e of each token, in `x.dtype`; other rows stay as they are."""
    source, blocks = routing.source, routing.blocks
    count = blocks.owners.shape[0]
    rows, tokens, outputs = source.shape[0] // count, x.shape[0], b.shape[1]
    options = {
        "compiler_params": plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        "interpret": interpret,
    }
    kernel = functools.partial(_shrink, rows=rows, config=config)
    parts = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((config.splits, count, rows, config.ranks), jnp.float32),
        grid=(config.splits, count),
        name=SHRINK_ENTRY,
        **options,
    )(blocks.owners, blocks.used.reshape(1), source, x, a)
    kernel = functools.partial(_expand, rows=rows, config=config)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens, outputs), x.dtype),
        # Blocks of rows of one adapter follow each other: what they read stays in the second-level cache.
        grid=(pl.cdiv(outputs, config.outputs * config.trips), count),
        name=EXPAND_ENTRY,
        **options,
    )(blocks.owners, blocks.used.reshape(1), source, scale, parts, b)


def _shrink(owners: Any, used: Any, source: Any, x: Any, a: Any, out: Any, *, rows: int, config: TritonConfig) -> None:
    part, block = pl.program_id(0), pl.program_id(1)
    size, step = x.shape[1], config.columns
    trips = pl.cdiv(size, step)
    share = pl.cdiv(trips, config.splits)

    @pl.when(block < used[0])
    def _() -> None:
        adapter = owners[block]
        row = jnp.arange(rows, dtype=jnp.int32)
        token = source[pl.ds(block * rows, rows)]
        real = token < x.shape[0]
        rank = jnp.arange(config.ranks, dtype=jnp.int32)

        def trip(i: jax.Array, total: jax.Array) -> jax.Array:
            column = i * step + jnp.arange(step, dtype=jnp.int32)
            inside = None if size % step == 0 else column < size
            activations = _load(x.at[token[:, None], column[None, :]], real, inside)
            own = None if a.shape[1] == config.ranks else rank < a.shape[1]
            weights = _load(a.at[adapter, rank[:, None], column[None, :]], own, inside)
            return total + dot(activations, weights)

        begin = part * share
        end = begin + share if trips % config.splits == 0 else jnp.minimum(begin + share, trips)
        total = jax.lax.fori_loop(begin, end, trip, jnp.zeros((rows, config.ranks), jnp.float32))
        plgpu.store(out.at[part, block, row[:, None], rank[None, :]], total, mask=real[:, None])


def _expand(
    owners: Any,
    used: Any,
    source: Any,
    scale: Any,
    parts: Any,
    b: Any,
    out: Any,
    *,
    rows: int,
    config: TritonConfig,
) -> None:
    chunk, block = pl.program_id(0), pl.program_id(1)
    size, step = out.shape[1], config.outputs

    @pl.when(block < used[0])
    def _() -> None:
        adapter = owners[block]
        row = jnp.arange(rows, dtype=jnp.int32)
        token = source[pl.ds(block * rows, rows)]
        real = token < out.shape[0]
        rank = jnp.arange(config.ranks, dtype=jnp.int32)
        each = (
            _load(parts.at[split, block, row[:, None], rank[None, :]], real, None) for split in range(config.splits)
        )
        hidden = functools.reduce(jnp.add, each) * scale[adapter]

        def trip(i: jax.Array, _: None) -> None:
            column = (chunk * config.trips + i) * step + jnp.arange(step, dtype=jnp.int32)
            inside = None if size % (step * config.trips) == 0 else column < size
            own = None if b.shape[2] == config.ranks else rank < b.shape[2]
            y = dot(hidden, _load(b.at[adapter, column[:, None], rank[None, :]], inside, own))
            mask = real[:, None] if inside is None else real[:, None] & inside[None, :]
            plgpu.store(out.at[token[:, None], column[None, :]], y.astype(out.dtype), mask=mask)

        jax.lax.fori_loop(0, config.trips, trip, None)


def _load(at: Any, rows: jax.Array | None, columns: jax.Array | None) -> jax.Array:
    """A tile, with zeros outside of the rows and columns that are named."""
    masks = [*([] if rows is None else [rows[:, None]]), *([] if columns is None else [columns[None, :]])]
    if not masks:
        return plgpu.load(at)
    return plgpu.load(at, mask=functools.reduce(jnp.logical_and, masks), other=0.0)
