"""The CUDA kernel for many rows of activations in 8 bits: integer tensor cores, and scales on each group's sums.

Sums of a group's products are exact integers; in float32 they take the product of both scales, group after group, and
an offset takes the sum of the activations, as in the native CPU kernels. A result so costs three or four instructions
for 32 products whatever the tile, where a weight decoded to bfloat16 costs its few once for all rows of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.rounding import RoundedRows
from pallas_kernels.quantized_matmul.triton_bytes import value_tile
from pallas_kernels.quantized_matmul.triton_codes import group_scale, multiply_add
from pallas_kernels.quantized_matmul.triton_rows import WeightRows

ENTRY = "quantized_matmul_int8"


def int8_matmul(
    x: RoundedRows,
    stored: Stored,
    form: Format,
    config: PrefillConfig,
    *,
    dtype: Any,
    assembly: bool,
    interpret: bool = False,
) -> Array:
    """`x @ unpack(stored).T`, `dtype[tokens, rows]`, of exact codes in groups of 32."""
    (tokens, columns), rows = x.codes.shape, stored[-1].shape[1]
    factors = (x.scales, x.sums) if form.offset else (x.scales,)
    tile = functools.partial(multiply_tile, config=config, groups=columns // form.group, assembly=assembly)
    return pl.pallas_call(
        functools.partial(_kernel, form=form, tile=tile),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        grid=(tokens // config.tokens, rows // config.rows),
        in_specs=[
            pl.BlockSpec((config.tokens, columns), lambda i, j: (i, 0)),
            tuple(pl.BlockSpec((part.shape[0], config.tokens), lambda i, j: (0, i)) for part in factors),
            pl.BlockSpec((stored[-1].shape[0], config.rows), lambda i, j: (0, j)),
            *(pl.BlockSpec((config.rows, plane.shape[1]), lambda i, j: (j, 0)) for plane in stored[:-1]),
        ],
        out_specs=pl.BlockSpec((config.tokens, config.rows), lambda i, j: (i, j)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=ENTRY,
    )(x.codes, factors, stored[-1], *stored[:-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """What a tile of results is made of, as references: `codes[tokens, columns]`; `scales` and `sums[groups, tokens]`.

    `sums` is None for weights without offsets.
    """

    codes: Any
    scales: Any
    sums: Any | None
    weight: WeightRows


def _kernel(codes: Any, factors: tuple[Any, ...], scales: Any, *refs: Any, form: Format, tile: Any) -> None:
    *planes, out = refs
    weight = WeightRows(form=form, planes=planes, scales=scales)
    sums = factors[1] if form.offset else None
    out[:, :] = tile(Operands(codes=codes, scales=factors[0], sums=sums, weight=weight)).T.astype(out.dtype)


def multiply_tile(operands: Operands, *, config: PrefillConfig, groups: int, assembly: bool) -> jax.Array:
    """In a kernel: the product of rows of a weight with a tile of activations, `float32[rows, tokens]`."""
    step = config.groups
    add = functools.partial(_add_groups, operands, groups=groups, assembly=assembly)
    total = jnp.zeros((config.rows, config.tokens), jnp.float32)
    total = jax.lax.fori_loop(0, groups // step, lambda i, total: add(total, i * step, step), total)
    if groups % step:
        total = add(total, groups - groups % step, groups % step)
    return total


def _add_groups(
    operands: Operands, total: jax.Array, first: jax.Array | int, count: int, *, groups: int, assembly: bool
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    weight, shape = operands.weight, total.shape
    form = weight.form
    tiles: list[jax.Array] = []
    words = weight.words(first, count, groups)
    for t in range(count):
        tiles = weight.tiles(tiles, first, t)
        values = value_tile(tiles, form, t, assembly=assembly)
        activations = operands.codes[:, pl.ds((first + t) * form.group, form.group)]
        products = jnp.dot(values, activations.T, preferred_element_type=jnp.int32).astype(jnp.float32)
        scale, offset = group_scale(words, form, t, count, assembly=assembly)
        own = jnp.broadcast_to(operands.scales[first + t, :][None, :], shape)
        total = multiply_add(products, jnp.broadcast_to(scale[:, None], shape) * own, total, assembly=assembly)
        if offset is not None and operands.sums is not None:
            sums = jnp.broadcast_to(operands.sums[first + t, :][None, :], shape)
            total = multiply_add(jnp.broadcast_to(offset[:, None], shape), sums, total, assembly=assembly)
    return total
