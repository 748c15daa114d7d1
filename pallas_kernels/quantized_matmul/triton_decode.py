"""The CUDA kernel for up to 16 rows of activations: weights are read once, and scales meet sums of exact products.

Each group's codes, exact in bfloat16, are multiplied by the activations on the tensor cores; the float32 sums then take
the group's scale and offset. A block of the grid owns some rows of the weight and a part of the columns; parts are
added up outside.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16, Float32

from pallas_kernels.quantized_matmul.config import DecodeConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_codes import bias_of, code_tile, group_scale, load_words, multiply_add

ENTRY = "quantized_matmul_decode"


def decode_matmul(
    x: BFloat16[Array, "tokens columns"],
    stored: Stored,
    form: Format,
    config: DecodeConfig,
    *,
    assembly: bool,
    interpret: bool = False,
) -> Float32[Array, "rows tokens"]:
    """`unpack(stored) @ x.T` for 8 or 16 tokens, `columns` all those of the scales' groups."""
    tokens, columns = x.shape
    rows = stored[-1].shape[1]
    sums = jnp.sum(x.reshape(tokens, -1, form.group), axis=-1, dtype=jnp.float32).T
    kernel = functools.partial(_kernel, form=form, config=config, groups=columns // form.group, assembly=assembly)
    tile = config.rows
    parts = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((config.splits, rows, tokens), jnp.float32),
        grid=(rows // tile, config.splits),
        in_specs=[
            pl.BlockSpec((tokens, columns), lambda i, part: (0, 0)),
            pl.BlockSpec(sums.shape, lambda i, part: (0, 0)),
            pl.BlockSpec((stored[-1].shape[0], tile), lambda i, part: (0, i)),
            *(pl.BlockSpec((tile, plane.shape[1]), lambda i, part: (i, 0)) for plane in stored[:-1]),
        ],
        out_specs=pl.BlockSpec((1, tile, tokens), lambda i, part: (part, i, 0)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=ENTRY,
    )(x, sums, stored[-1], *stored[:-1])
    return parts[0] if config.splits == 1 else jnp.sum(parts, axis=0)


def _kernel(
    x: Any, sums: Any, scales: Any, *refs: Any, form: Format, config: DecodeConfig, groups: int, assembly: bool
) -> None:
    *planes, out = refs
    step = config.groups
    trips = groups // step // config.splits
    begin = pl.program_id(1) * trips * step
    add = functools.partial(_add_groups, (x, sums, planes), form=form, assembly=assembly)
    words = functools.partial(load_words, scales, form, groups=groups)

    def trip(i: jax.Array, carry: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """One trip; the scales of the next are on their way meanwhile, for only operands of products are prefetched."""
        total, current = carry
        first = begin + i * step
        following = words(begin + jnp.minimum(i + 1, trips - 1) * step, step)
        return add(total, first, step, current), following

    total = jnp.zeros(out.shape[1:], jnp.float32)
    if trips:
        total, _ = jax.lax.fori_loop(0, trips, trip, (total, words(begin, step)))
    rest = groups % step
    if rest:
        last = pl.program_id(1) == config.splits - 1
        first = groups - rest
        # A group is a product with zero where another block adds it.
        total = jnp.where(last, add(total, first, rest, words(first, rest)), total)
    out[0] = total


def _add_groups(
    operands: tuple[Any, Any, list[Any]],
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    words: tuple[jax.Array, ...],
    *,
    form: Format,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    x, sums, planes = operands
    shape = total.shape
    tiles: list[Any] = [None] * len(planes)
    for t in range(count):
        tiles = load_tiles(planes, tiles, form, first, t)
        codes = code_tile(tiles, form, t, exact=False, assembly=assembly)
        activations = x[:, pl.ds((first + t) * form.group, form.group)]
        product = jnp.dot(codes, activations.T, preferred_element_type=jnp.float32)
        scale, offset = group_scale(words, form, t, count, assembly=assembly)
        total = multiply_add(product, jnp.broadcast_to(scale[:, None], shape), total, assembly=assembly)
        if offset is not None:
            # The bias that codes still have goes with the offset.
            bias = jnp.full(scale.shape, -bias_of(form, False), jnp.float32)
            offset = multiply_add(scale, bias, offset, assembly=assembly)
            row = jnp.broadcast_to(sums[first + t, :][None, :], shape)
            total = multiply_add(row, jnp.broadcast_to(offset[:, None], shape), total, assembly=assembly)
    return total


def load_tiles(planes: list[Any], tiles: list[Any], form: Format, first: jax.Array | int, t: int) -> list[Any]:
    """The tile of each plane that holds group `first + t`; what group t - 1 had where that is the same."""
    out = list(tiles)
    for at, (plane, bits) in enumerate(zip(planes, form.planes, strict=True)):
        fields = 8 // bits
        if t % fields == 0:
            start = (first // fields + t // fields) * form.group
            out[at] = plane[:, pl.ds(start, form.group)]
    return out
