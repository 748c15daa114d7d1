"""The CUDA kernel for many rows of activations in 8 bits: integer tensor cores, and scales on each group's sums.

Sums of a group's products are exact integers; in float32 they take the product of both scales, group after group, and
an offset takes the sum of the activations, as in the native CPU kernels. A result so costs three or four instructions
for 32 products whatever the tile, where a weight decoded to bfloat16 costs its few once for all rows of a tile.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.rounding import RoundedRows
from pallas_kernels.quantized_matmul.triton_bytes import value_tile
from pallas_kernels.quantized_matmul.triton_codes import group_scale, multiply_add
from pallas_kernels.quantized_matmul.triton_rows import WeightRows
from pallas_kernels.quantized_matmul.triton_tiles import sum_of_groups, tiled_matmul

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
    given = (x.codes, x.scales, x.sums) if form.offset else (x.codes, x.scales)
    multiply = functools.partial(_multiply_tile, config=config, groups=x.scales.shape[0], assembly=assembly)
    return tiled_matmul(given, stored, form, config, multiply, dtype=dtype, name=ENTRY, interpret=interpret)


def _multiply_tile(
    weight: WeightRows, *activations: Any, config: PrefillConfig, groups: int, assembly: bool
) -> jax.Array:
    """The product of rows of a weight with the tokens of references `codes`, `scales` and, for offsets, `sums`."""
    add = functools.partial(_add_groups, weight, activations, groups=groups, assembly=assembly)
    return sum_of_groups(add, config, groups)


def _add_groups(
    weight: WeightRows,
    activations: tuple[Any, ...],
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    *,
    groups: int,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    (codes, *factors), form, shape = activations, weight.form, total.shape
    tiles: list[jax.Array] = []
    words = weight.words(first, count, groups)
    for t in range(count):
        tiles = weight.tiles(tiles, first, t)
        values = value_tile(tiles, form, t, assembly=assembly)
        columns = codes[:, pl.ds((first + t) * form.group, form.group)]
        products = jnp.dot(values, columns.T, preferred_element_type=jnp.int32).astype(jnp.float32)
        scale, offset = group_scale(words, form, t, count, assembly=assembly)
        own = jnp.broadcast_to(factors[0][first + t, :][None, :], shape)
        total = multiply_add(products, jnp.broadcast_to(scale[:, None], shape) * own, total, assembly=assembly)
        if offset is not None:
            sums = jnp.broadcast_to(factors[1][first + t, :][None, :], shape)
            total = multiply_add(jnp.broadcast_to(offset[:, None], shape), sums, total, assembly=assembly)
    return total
