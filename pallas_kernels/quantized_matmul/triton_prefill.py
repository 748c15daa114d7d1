"""The CUDA kernel for many rows of activations: weights are decoded to bfloat16 next to the tensor cores."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, BFloat16

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_codes import code_tile, group_scale, scaled
from pallas_kernels.quantized_matmul.triton_rows import WeightRows
from pallas_kernels.quantized_matmul.triton_tiles import sum_of_groups, tiled_matmul

ENTRY = "quantized_matmul_prefill"


def prefill_matmul(
    x: BFloat16[Array, "tokens columns"],
    stored: Stored,
    form: Format,
    config: PrefillConfig,
    *,
    dtype: Any,
    assembly: bool,
    interpret: bool = False,
) -> Array:
    """`x @ unpack(stored).T`, `dtype[tokens, rows]`; weights, their scales and offsets are rounded to bfloat16."""
    multiply = functools.partial(multiply_tile, config=config, groups=x.shape[1] // form.group, assembly=assembly)
    return tiled_matmul((x,), stored, form, config, multiply, dtype=dtype, name=ENTRY, interpret=interpret)


def multiply_tile(weight: WeightRows, x: Any, *, config: PrefillConfig, groups: int, assembly: bool) -> jax.Array:
    """In a kernel: the product of rows of a weight with `x[tokens, columns]`, a reference; `float32[rows, tokens]`."""
    return sum_of_groups(functools.partial(_add_groups, weight, x, groups=groups, assembly=assembly), config, groups)


def _add_groups(
    weight: WeightRows,
    x: Any,
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    *,
    groups: int,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    form = weight.form
    tiles: list[jax.Array] = []
    shape = (total.shape[0], form.group)
    words = weight.words(first, count, groups)
    for t in range(count):
        tiles = weight.tiles(tiles, first, t)
        codes = code_tile(tiles, form, t, exact=True, assembly=assembly)
        parts = (part for part in group_scale(words, form, t, count, assembly=assembly) if part is not None)
        scale, *offset = (jnp.broadcast_to(part.astype(jnp.bfloat16)[:, None], shape) for part in parts)
        weights = scaled(codes, scale, offset[0] if offset else None, assembly=assembly)
        activations = x[:, pl.ds((first + t) * form.group, form.group)]
        total += jnp.dot(weights, activations.T, preferred_element_type=jnp.float32)
    return total
