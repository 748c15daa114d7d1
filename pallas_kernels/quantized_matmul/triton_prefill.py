"""The CUDA kernel for many rows of activations: weights are decoded to bfloat16 next to the tensor cores."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_codes import code_tile, group_scale, load_words, scaled
from pallas_kernels.quantized_matmul.triton_decode import load_tiles

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
    kernel = functools.partial(_kernel, form=form, config=config, groups=columns // form.group, assembly=assembly)
    return pl.pallas_call(
        kernel,
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


def _kernel(x: Any, scales: Any, *refs: Any, form: Format, config: PrefillConfig, groups: int, assembly: bool) -> None:
    *planes, out = refs
    step = config.groups
    add = functools.partial(_add_groups, (x, scales, planes), form=form, groups=groups, assembly=assembly)
    total = jnp.zeros((config.rows, config.tokens), jnp.float32)
    total = jax.lax.fori_loop(0, groups // step, lambda i, total: add(total, i * step, step), total)
    if groups % step:
        total = add(total, groups - groups % step, groups % step)
    out[:, :] = total.T.astype(out.dtype)


def _add_groups(
    operands: tuple[Any, Any, list[Any]],
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    *,
    form: Format,
    groups: int,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    x, scales, planes = operands
    tiles: list[Any] = [None] * len(planes)
    shape = (total.shape[0], form.group)
    words = load_words(scales, form, first, count, groups)
    for t in range(count):
        tiles = load_tiles(planes, tiles, form, first, t)
        codes = code_tile(tiles, form, t, exact=True, assembly=assembly)
        parts = (part for part in group_scale(words, form, t, count, assembly=assembly) if part is not None)
        scale, *offset = (jnp.broadcast_to(part.astype(jnp.bfloat16)[:, None], shape) for part in parts)
        weights = scaled(codes, scale, offset[0] if offset else None, assembly=assembly)
        activations = x[:, pl.ds((first + t) * form.group, form.group)]
        total += jnp.dot(weights, activations.T, preferred_element_type=jnp.float32)
    return total
