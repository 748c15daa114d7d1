"""The TPU kernel: blocks of the weight are decoded to bfloat16 in vector memory, next to the matrix unit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16

from pallas_kernels.quantized_matmul.config import TpuConfig
from pallas_kernels.quantized_matmul.formats import NONLINEAR, Format
from pallas_kernels.quantized_matmul.layouts import Stored

ENTRY = "quantized_matmul_tpu"
_SUBLANES = 8


def tpu_matmul(
    x: BFloat16[Array, "tokens columns"],
    stored: Stored,
    form: Format,
    config: TpuConfig,
    *,
    dtype: Any,
    interpret: bool = False,
) -> Array:
    """`x @ unpack(stored).T`, `dtype[tokens, rows]`; weights are decoded in float32 and rounded to bfloat16."""
    tokens, columns = x.shape
    rows = stored[-1].shape[1]
    grid = (rows // config.rows, tokens // config.tokens, columns // config.columns)
    kernel = functools.partial(_kernel, form=form, config=config, steps=grid[2])
    part = functools.partial(plane_block, columns=config.columns, whole=grid[2] == 1)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        grid=grid,
        in_specs=[
            pl.BlockSpec((config.tokens, config.columns), lambda j, i, k: (i, k)),
            pl.BlockSpec((stored[-1].shape[0], config.rows), lambda j, i, k: (0, j)),
            *(
                pl.BlockSpec((part(plane.shape[0], bits), config.rows), lambda j, i, k: (k, j))
                for plane, bits in zip(stored[:-1], form.planes, strict=True)
            ),
        ],
        out_specs=pl.BlockSpec((config.tokens, config.rows), lambda j, i, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((config.tokens, config.rows), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * tokens * columns * rows,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (x, *stored))
            + tokens * rows * jnp.dtype(dtype).itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name=ENTRY,
    )(x, stored[-1], *stored[:-1])


def plane_block(plane_rows: int, bits: int, *, columns: int, whole: bool) -> int:
    """Rows of a plane that a block of columns takes; a plane may be filled up where the block is the whole of it."""
    return plane_rows if whole else columns * bits // 32


def _kernel(x: Any, scales: Any, *refs: Any, form: Format, config: TpuConfig, steps: int) -> None:
    multiply_step(pl.program_id(2), x, scales, *refs, form=form, config=config, steps=steps)


def multiply_step(k: jax.Array, x: Any, scales: Any, *refs: Any, form: Format, config: TpuConfig, steps: int) -> None:
    """In a kernel: the k-th of `steps` blocks of columns. `refs` are the planes, the output, and the float32 sums."""
    *planes, out, total = refs

    @pl.when(k == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    groups = config.columns // form.group
    if form.supers:
        words = (
            rows_of(scales, 0, k, groups // 4, steps),
            rows_of(scales, steps * (groups // 4), k, groups // 16, steps),
        )
    else:
        words = (rows_of(scales, 0, k, groups if form.offset else groups // 2, steps),)
    weights = _decode([plane[...] for plane in planes], words, form, config.columns)
    total[...] += jnp.dot(x[...], weights, preferred_element_type=jnp.float32)

    @pl.when(k == steps - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def rows_of(scales: Any, begin: int, k: jax.Array, count: int, steps: int) -> jax.Array:
    """The words `begin + k count` to `+ count`: whole registers, or a part of one, which loads cannot choose."""
    if steps == 1:
        return scales[begin : begin + count, :]
    if count % _SUBLANES == 0 and begin % _SUBLANES == 0:
        return scales[pl.ds(pl.multiple_of(begin + k * count, _SUBLANES), count), :]
    first = begin + k * count
    start = pl.multiple_of(first // _SUBLANES * _SUBLANES, _SUBLANES)
    window = scales[pl.ds(start, _SUBLANES), :]
    own = window[:count]
    for part in range(1, _SUBLANES // count):
        own = jnp.where(first - start == part * count, window[part * count : (part + 1) * count], own)
    return own


def _decode(planes: list[jax.Array], words: tuple[jax.Array, ...], form: Format, columns: int) -> jax.Array:
    """`bfloat16[columns, rows]` of a block; every step works on whole registers of 8 columns by 128 rows."""
    rows = words[0].shape[-1]
    values = _values(planes, form, columns).reshape(-1, form.group, rows)
    if form.supers:
        weights = _scaled_twice(values, words[0], words[1], form)
        return weights.reshape(columns, rows).astype(jnp.bfloat16)
    first, second = (_spread(half(words[0], high, form), form.group) for high in (False, True))
    if form.offset:
        weights = values * first + second
    else:
        # Word w holds the scales of groups 2 w and 2 w + 1.
        weights = values * jnp.stack([first, second], axis=1).reshape(values.shape)
    return weights.reshape(columns, rows).astype(jnp.bfloat16)


def _scaled_twice(values: jax.Array, subs: jax.Array, supers: jax.Array, form: Format) -> jax.Array:
    """Values `[groups, 16, rows]` times the integers of groups, four in each word, times the floats of 256."""
    first, second = (_spread(half(supers, high, form), 256).reshape(values.shape) for high in (False, True))

    def integers(down: int, mask: int, zero: int) -> jax.Array:
        parts = [(subs >> (8 * n + down) & mask).astype(jnp.int32).astype(jnp.float32) - zero for n in range(4)]
        return jnp.stack([_spread(part, form.group) for part in parts], axis=1).reshape(values.shape)

    if form.offset:
        return values * integers(0, 15, 0) * first + integers(4, 15, 0) * second
    return values * integers(0, 255, 32) * first


def _spread(scales: jax.Array, group: int) -> jax.Array:
    """Each group's scale over its columns."""
    return jnp.broadcast_to(scales[:, None, :], (scales.shape[0], group, scales.shape[1]))


def half(words: jax.Array, high: bool, form: Format) -> jax.Array:
    """The lower or upper 16-bit float of each word in float32, by integers: half floats do not exist here."""
    if form.wide:
        bits = words & jnp.uint32(0xFFFF0000) if high else words << 16
        return jax.lax.bitcast_convert_type(bits, jnp.float32)
    bits = words >> 16 if high else words
    digits = jax.lax.bitcast_convert_type(bits & 0x7FFF, jnp.int32)
    normal = jax.lax.bitcast_convert_type((digits << 13) + (112 << 23), jnp.float32)
    # A subnormal half would be a subnormal float32 before its exponent is mended, and those are flushed to zero.
    magnitude = jnp.where(digits < 0x400, digits.astype(jnp.float32) * jnp.float32(2.0**-24), normal)
    return jnp.where((bits & 0x8000) != 0, -magnitude, magnitude)


def _values(planes: list[jax.Array], form: Format, columns: int) -> jax.Array:
    """`v(code)` in float32, `[columns, rows]`."""
    if form.signed:
        fields = [jax.lax.bitcast_convert_type(planes[0] << (24 - 8 * n), jnp.int32) >> 24 for n in range(4)]
        return _interleave(fields, columns).astype(jnp.float32)
    if form.paired:
        return biased_codes(planes, form, columns).astype(jnp.float32) - (BIAS + form.zero)
    fields = [planes[0] >> (4 * n) & jnp.uint32(15) for n in range(8)]
    codes = jax.lax.bitcast_convert_type(_interleave(fields, columns), jnp.int32)
    return _nonlinear(codes.astype(jnp.float32)) if form.table == NONLINEAR else _doubled_e2m1(codes)


BIAS = 128


def biased_codes(planes: list[jax.Array], form: Format, columns: int) -> jax.Array:
    """`BIAS + code` in bfloat16, `[columns, rows]`: codes become the mantissas of pairs of bfloat16 in a word."""
    pairs, low = jnp.uint32(0x43004300), 0
    for plane, bits in zip(planes, form.planes, strict=True):
        mask = jnp.uint32(0x00010001 * (((1 << bits) - 1) << low))
        fields = [_moved(plane, bits * f - low) & mask for f in range(16 // bits)]
        pairs = pairs | _interleave(fields, columns // 2)
        low += bits
    return pltpu.bitcast(pairs, jnp.bfloat16)


def _moved(words: jax.Array, down: int) -> jax.Array:
    return words >> down if down > 0 else words << -down if down < 0 else words


def _interleave(fields: list[jax.Array], columns: int) -> jax.Array:
    """Fields of words `[tiles * 8, rows]` in the order of columns: those of a tile follow each other."""
    rows = fields[0].shape[-1]
    tiles = [field.reshape(-1, 1, _SUBLANES, rows) for field in fields]
    return jnp.concatenate(tiles, axis=1).reshape(-1, rows)[:columns]


def _doubled_e2m1(codes: jax.Array) -> jax.Array:
    """Sign, exponent and mantissa in the places of a float32 of bias 127; zero and a half are subnormal in e2m1."""
    bits = ((codes & 8) << 28) | ((codes & 7) << 22)
    normal = jax.lax.bitcast_convert_type(bits + (127 << 23), jnp.float32)
    # Below 2 exponents count evenly: 0 and 1 are the codes themselves.
    magnitude = (codes & 7).astype(jnp.float32)
    small = jnp.where(codes > 7, -magnitude, magnitude)
    return jnp.where((codes & 7) < 2, small, normal)


def _nonlinear(codes: jax.Array) -> jax.Array:
    """The values of IQ4_NL, by a polynomial that rounds to each of them."""
    value = jnp.full(codes.shape, jnp.float32(_POLYNOMIAL[0]))
    for coefficient in _POLYNOMIAL[1:]:
        value = value * codes + jnp.float32(coefficient)
    return jnp.round(value)


# Found by weighted least squares; within 0.4341 of the values in float32.
_POLYNOMIAL = (0.00158655, 0.0310677, -1.3717, 24.1729, -126.567)
