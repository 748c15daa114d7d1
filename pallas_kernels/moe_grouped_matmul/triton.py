"""The CUDA kernels: those of quantized_matmul, where each block of the grid finds its expert's rows by an index."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16, Float

from pallas_kernels.quantized_matmul.config import DecodeConfig, PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_decode import group_sums, multiply_part, split_operands
from pallas_kernels.quantized_matmul.triton_prefill import multiply_tile
from pallas_kernels.quantized_matmul.triton_rows import WeightRows
from pallas_kernels.routing import Blocks

DECODE_ENTRY = "moe_grouped_matmul_decode"
PREFILL_ENTRY = "moe_grouped_matmul_prefill"


def decode_matmul(
    x: BFloat16[Array, "rows columns"],
    stored: Stored,
    form: Format,
    blocks: Blocks,
    config: DecodeConfig,
    *,
    dtype: Any,
    assembly: bool,
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """Products of blocks of 8 or 16 rows with exact codes, `dtype`; rows of blocks that are not used stay as they are.

    An expert with more rows is read once for each of its blocks.
    """
    rows, columns = x.shape
    count, outputs, tile = blocks.owners.shape[0], stored[-1].shape[-1], config.rows
    block = rows // count
    sums = group_sums(x, form)
    multiply = functools.partial(multiply_part, config=config, groups=columns // form.group, assembly=assembly)
    parts = pl.pallas_call(
        functools.partial(_decode_kernel, form=form, tile=tile, multiply=multiply),
        out_shape=jax.ShapeDtypeStruct((config.splits, rows, outputs), dtype if config.splits == 1 else jnp.float32),
        grid=(outputs // tile, count, config.splits),
        in_specs=[
            pl.BlockSpec(),
            pl.BlockSpec(),
            pl.BlockSpec((block, columns), lambda i, b, part: (b, 0)),
            *(pl.BlockSpec() for _ in stored),
            *(pl.BlockSpec((each.shape[0], block), lambda i, b, part: (0, b)) for each in sums),
        ],
        out_specs=pl.BlockSpec((1, block, tile), lambda i, b, part: (part, b, i)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=DECODE_ENTRY,
    )(blocks.owners, blocks.used.reshape(1), x, stored[-1], *stored[:-1], *sums)
    return parts[0] if config.splits == 1 else jnp.sum(parts, axis=0).astype(dtype)


def _decode_kernel(
    experts: Any,
    used: Any,
    x: Any,
    scales: Any,
    *refs: Any,
    form: Format,
    tile: int,
    multiply: Callable[..., jax.Array],
) -> None:
    planes, sums, out = split_operands(refs, form)
    at, block, part = (pl.program_id(axis) for axis in range(3))

    @pl.when(block < used[0])
    def _() -> None:
        own = pl.ds(at * tile, tile)
        weight = WeightRows(form=form, planes=planes, scales=scales, index=(experts[block],), rows=own)
        out[0, :, :] = multiply(x, sums, weight, part).T.astype(out.dtype)


def prefill_matmul(
    x: BFloat16[Array, "rows columns"],
    stored: Stored,
    form: Format,
    blocks: Blocks,
    config: PrefillConfig,
    *,
    dtype: Any,
    assembly: bool,
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """The same for blocks of `config.tokens` rows, with weights, their scales and offsets rounded to bfloat16."""
    rows, columns = x.shape
    outputs, tile = stored[-1].shape[-1], config.rows
    multiply = functools.partial(multiply_tile, config=config, groups=columns // form.group, assembly=assembly)
    return pl.pallas_call(
        functools.partial(_prefill_kernel, form=form, tile=tile, multiply=multiply),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        # Blocks of rows of one expert follow each other: what they read stays in the second-level cache.
        grid=(outputs // tile, blocks.owners.shape[0]),
        in_specs=[
            pl.BlockSpec(),
            pl.BlockSpec(),
            pl.BlockSpec((config.tokens, columns), lambda i, b: (b, 0)),
            *(pl.BlockSpec() for _ in stored),
        ],
        out_specs=pl.BlockSpec((config.tokens, tile), lambda i, b: (b, i)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=PREFILL_ENTRY,
    )(blocks.owners, blocks.used.reshape(1), x, stored[-1], *stored[:-1])


def _prefill_kernel(
    experts: Any,
    used: Any,
    x: Any,
    scales: Any,
    *refs: Any,
    form: Format,
    tile: int,
    multiply: Callable[..., jax.Array],
) -> None:
    *planes, out = refs
    at, block = pl.program_id(0), pl.program_id(1)

    @pl.when(block < used[0])
    def _() -> None:
        own = pl.ds(at * tile, tile)
        weight = WeightRows(form=form, planes=planes, scales=scales, index=(experts[block],), rows=own)
        out[:, :] = multiply(weight, x).T.astype(out.dtype)
