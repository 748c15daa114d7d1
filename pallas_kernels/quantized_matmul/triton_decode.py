"""The CUDA kernel for up to 16 rows of activations: weights are read once, and scales meet sums of exact products.

Each group's codes, exact in bfloat16, are multiplied by the activations on the tensor cores; the float32 sums then take
the group's scale and offset. A block of the grid owns some rows of the weight and a part of the columns; parts are
added up outside. Where there is one part, its sums are rounded before they are written. The tensor cores take 8 tokens
or 16: fewer are filled up in registers, and neither what is read nor what is written has more rows than there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from pallas_kernels.quantized_matmul.config import DecodeConfig, padded_tokens
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_codes import bias_of, code_tile, group_scale, multiply_add
from pallas_kernels.quantized_matmul.triton_rows import WeightRows

ENTRY = "quantized_matmul_decode"


def decode_matmul(
    x: BFloat16[Array, "tokens columns"],
    stored: Stored,
    form: Format,
    config: DecodeConfig,
    *,
    dtype: Any,
    assembly: bool,
    interpret: bool = False,
) -> Float[Array, "rows tokens"]:
    """`unpack(stored) @ x.T` in `dtype` for up to 16 tokens, `columns` all those of the scales' groups."""
    tokens, columns = x.shape
    rows = stored[-1].shape[1]
    sums = group_sums(x, form)
    multiply = functools.partial(multiply_part, config=config, groups=columns // form.group, assembly=assembly)
    tile, whole = config.rows, config.splits == 1
    parts = pl.pallas_call(
        functools.partial(_kernel, form=form, multiply=multiply),
        out_shape=jax.ShapeDtypeStruct((config.splits, rows, tokens), dtype if whole else jnp.float32),
        grid=(rows // tile, config.splits),
        in_specs=[
            pl.BlockSpec((tokens, columns), lambda i, part: (0, 0)),
            pl.BlockSpec((stored[-1].shape[0], tile), lambda i, part: (0, i)),
            *(pl.BlockSpec((tile, plane.shape[1]), lambda i, part: (i, 0)) for plane in stored[:-1]),
            *(pl.BlockSpec(each.shape, lambda i, part: (0, 0)) for each in sums),
        ],
        out_specs=pl.BlockSpec((1, tile, tokens), lambda i, part: (part, i, 0)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=ENTRY,
    )(x, stored[-1], *stored[:-1], *sums)
    return parts[0] if whole else jnp.sum(parts, axis=0).astype(dtype)


def group_sums(x: BFloat16[Array, "rows columns"], form: Format) -> tuple[Float32[Array, "groups rows"], ...]:
    """The sums of each group's activations, which only offsets are multiplied with: nothing for formats without."""
    if not form.offset:
        return ()
    return (jnp.sum(x.reshape(len(x), -1, form.group), axis=-1, dtype=jnp.float32).T,)


def _kernel(x: Any, scales: Any, *refs: Any, form: Format, multiply: Callable[..., jax.Array]) -> None:
    planes, sums, out = split_operands(refs, form)
    total = multiply(x, sums, WeightRows(form=form, planes=planes, scales=scales), pl.program_id(1))
    row, token = (jnp.arange(size, dtype=jnp.int32) for size in total.shape)
    own = None if len(token) == x.shape[0] else (token < x.shape[0])[None, :]
    plgpu.store(out.at[0, row[:, None], token[None, :]], total.astype(out.dtype), mask=own)


def split_operands(refs: Sequence[Any], form: Format) -> tuple[list[Any], Any, Any]:
    """A kernel's planes, its `group_sums` or None, and its output, from the references in that order."""
    count = len(form.planes)
    return list(refs[:count]), refs[count] if form.offset else None, refs[-1]


def multiply_part(
    x: Any,
    sums: Any,
    weight: WeightRows,
    part: jax.Array,
    *,
    config: DecodeConfig,
    groups: int,
    assembly: bool,
) -> jax.Array:
    """In a kernel: the product of rows of a weight with a part of the columns of x, `float32[rows, padded_tokens]`.

    `x[tokens, columns]` and the `group_sums[groups, tokens]`, None where there are none, are references; columns of the
    product behind those of the tokens repeat the last.
    """
    tokens = padded_tokens(x.shape[0])
    step = config.groups
    trips = groups // step // config.splits
    begin = part * trips * step
    add = functools.partial(_add_groups, (x, sums, weight), assembly=assembly)
    words = functools.partial(weight.words, groups=groups)

    def trip(i: jax.Array, carry: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """One trip; the scales of the next are on their way meanwhile, for only operands of products are prefetched."""
        total, current = carry
        first = begin + i * step
        following = words(begin + jnp.minimum(i + 1, trips - 1) * step, step)
        return add(total, first, step, current), following

    total = jnp.zeros((config.rows, tokens), jnp.float32)
    if trips:
        total, _ = jax.lax.fori_loop(0, trips, trip, (total, words(begin, step)))
    rest = groups % step
    if rest:
        last = part == config.splits - 1
        first = groups - rest
        # A group is a product with zero where another block adds it.
        total = jnp.where(last, add(total, first, rest, words(first, rest)), total)
    return total


def _add_groups(
    operands: tuple[Any, Any, WeightRows],
    total: jax.Array,
    first: jax.Array | int,
    count: int,
    words: tuple[jax.Array, ...],
    *,
    assembly: bool,
) -> jax.Array:
    """`total` with the products of `count` groups from `first`, a multiple of the planes' fields, on."""
    x, sums, weight = operands
    form, shape = weight.form, total.shape
    token: Any = slice(None)
    if x.shape[0] < shape[1]:
        token = jnp.minimum(jnp.arange(shape[1], dtype=jnp.int32), x.shape[0] - 1)
    tiles: list[jax.Array] = []
    for t in range(count):
        tiles = weight.tiles(tiles, first, t)
        codes = code_tile(tiles, form, t, exact=False, assembly=assembly)
        activations = x[token, pl.ds((first + t) * form.group, form.group)]
        product = jnp.dot(codes, activations.T, preferred_element_type=jnp.float32)
        scale, offset = group_scale(words, form, t, count, assembly=assembly)
        total = multiply_add(product, jnp.broadcast_to(scale[:, None], shape), total, assembly=assembly)
        if offset is not None:
            # The bias that codes still have goes with the offset.
            bias = jnp.full(scale.shape, -bias_of(form, False), jnp.float32)
            offset = multiply_add(scale, bias, offset, assembly=assembly)
            row = jnp.broadcast_to(sums[first + t, token][None, :], shape)
            total = multiply_add(row, jnp.broadcast_to(offset[:, None], shape), total, assembly=assembly)
    return total
