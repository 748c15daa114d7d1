"""The CUDA kernel for many rows of activations: weights are decoded to bfloat16 next to the tensor cores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_codes import code_tile, group_scale, scaled
from pallas_kernels.quantized_matmul.triton_rows import WeightRows

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
    tokens, columns = x.shape
    rows = stored[-1].shape[1]
    multiply = functools.partial(multiply_tile, config=config, groups=columns // form.group, assembly=assembly)
    return pl.pallas_call(
        functools.partial(_kernel, form=form, multiply=multiply),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        grid=(tokens // config.tokens, rows // config.rows),
        in_specs=[
            pl.BlockSpec((config.tokens, columns), lambda i, j: (i, 0)),
            pl.BlockSpec((stored[-1].shape[0], config.rows), lambda i, j: (0, j)),
            *(pl.BlockSpec((config.rows, plane.shape[1]), lambda i, j: (j, 0)) for plane in stored[:-1]),
        ],
        out_specs=pl.BlockSpec((config.tokens, config.rows), lambda i, j: (i, j)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=ENTRY,
    )(x, stored[-1], *stored[:-1])


def _kernel(x: Any, scales: Any, *refs: Any, form: Format, multiply: Callable[..., jax.Array]) -> None:
    *planes, out = refs
    out[:, :] = multiply(x, WeightRows(form=form, planes=planes, scales=scales)).T.astype(out.dtype)


def multiply_tile(x: Any, weight: WeightRows, *, config: PrefillConfig, groups: int, assembly: bool) -> jax.Array:
    """In a kernel: the product of rows of a weight with `x[tokens, columns]`, a reference; `float32[rows, tokens]`."""
    step = config.groups
    add = functools.partial(_add_groups, (x, weight), groups=groups, assembly=assembly)
    total = jnp.zeros((config.rows, config.tokens), jnp.float32)
    total = jax.lax.fori_loop(0, groups // step, lambda i, total: add(total, i * step, step), total)
    if groups % step:
        total = add(total, groups - groups % step, groups % step)
    return total


def _add_groups(
    operands: tuple[Any, WeightRows],
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    *,
    groups: int,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    x, weight = operands
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
