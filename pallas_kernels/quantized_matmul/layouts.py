"""How each backend keeps weights: planes of codes and words of scales, packed on the host and decoded in jnp.

A weight `[*lead, rows, columns]` becomes one array for each plane of its codes and one of scales, all along groups G:

::

    triton   plane of b bits   uint8[rows, tiles * group]     field f of byte (t, i) = column ((8/b) t + f) * group + i
    tpu      plane of b bits   uint32[tiles * 8, rows]        field n of word (t, r) = column ((32/b) t + n) * 8 + r
             of paired codes                                  field f of half h of word (t, r)
                                                              = column ((16/b) t + f) * 16 + 2 r + h
    both     scales            uint32[words, rows]            scale[w] | offset[w] << 16, or without offsets
                                                              scale[2 w] | scale[2 w + 1] << 16

With scales of 256 weights the words are first the bytes of groups 4 w to 4 w + 3, then those scales and their offsets.
Words are filled up to `WORDS` where a TPU reads them a block of columns at a time. Fields are counted from the lowest
bit. Rows are filled up with zeros to `ROWS`, and columns to the last tile. A row of the first plane of four bits is, on
`triton`, the file's own order of Q4_K.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.blocks import BLOCKS, Groups, read_groups
from pallas_kernels.quantized_matmul.formats import FORMATS, Format

ROWS = {"triton": 32, "tpu": 128}
"""What the number of rows is filled up to a multiple of: a block's rows on CUDA, a register's lanes on TPU."""

WORDS = 8
WHOLE_COLUMNS = 1024
"""Up to so many columns a TPU takes whole."""

Stored = tuple[jax.Array, ...]
"""The planes, then the scales."""

# Rows that are packed at a time, so that temporaries stay small beside the weight.
_PIECE = 4096
_SUBLANES = 8
_LARGEST_HALF = 65504.0


def groups_of(form: Format, columns: int) -> int:
    """The groups that kernels go through: even, for scales come in pairs."""
    return math.ceil(columns / form.group / 2) * 2


def stored_shapes(kind: str, shape: tuple[int, ...], backend: Backend) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of the arrays that keep a weight `[*lead, rows, columns]` of the format `kind`."""
    form, (*lead, rows, columns) = FORMATS[kind], shape
    rows = math.ceil(rows / ROWS[backend]) * ROWS[backend]
    groups = groups_of(form, columns)
    words = words_of(form, groups)
    if backend == "tpu" and columns > WHOLE_COLUMNS:
        words = math.ceil(words / WORDS) * WORDS
    shapes = [(_plane_shape(form, bits, rows, groups, backend)) for bits in form.planes]
    dtype = jnp.uint8 if backend == "triton" else jnp.uint32
    planes = tuple(jax.ShapeDtypeStruct((*lead, *plane), dtype) for plane in shapes)
    return (*planes, jax.ShapeDtypeStruct((*lead, words, rows), jnp.uint32))


def words_of(form: Format, groups: int) -> int:
    """Words of scales of a row's groups."""
    if form.supers:
        return groups // 4 + groups // 16
    return groups if form.offset else groups // 2


def _plane_shape(form: Format, bits: int, rows: int, groups: int, backend: Backend) -> tuple[int, int]:
    if backend == "triton":
        return rows, math.ceil(groups * bits / 8) * form.group
    return math.ceil(groups * form.group * bits / (32 * _SUBLANES)) * _SUBLANES, rows


def pack(kind: str, raw: np.ndarray, columns: int, backend: Backend) -> tuple[np.ndarray, ...]:
    """Repack rows of blocks `uint8[*lead, rows, row_bytes]` of the format `kind` into the arrays of `stored_shapes`.

    Raises:
        ValueError: the blocks are not those of so many columns, or a scale is beyond the half floats.
    """
    per_block, block_bytes = BLOCKS[kind]
    *lead, rows, row_bytes = raw.shape
    if columns % per_block or row_bytes != columns // per_block * block_bytes:
        raise ValueError(f"{columns} columns of {kind} must be whole blocks of {block_bytes} bytes, got {row_bytes}")
    shapes = stored_shapes(kind, (*lead, rows, columns), backend)
    out = tuple(np.zeros(array.shape, array.dtype) for array in shapes)
    for index in np.ndindex(*lead):
        for first in range(0, rows, _PIECE):
            piece = raw[index][first : first + _PIECE]
            span = slice(first, first + len(piece))
            packed = _pack_rows(FORMATS[kind], read_groups(kind, piece), backend)
            for array, part in zip(out[:-1], packed[:-1], strict=True):
                array[index][span if backend == "triton" else (slice(None), span)] = part
            out[-1][index][: len(packed[-1]), span] = packed[-1]
    return out


def _pack_rows(form: Format, read: Groups, backend: Backend) -> list[np.ndarray]:
    planes, low = [], 0
    for bits in form.planes:
        part = read.codes >> low & ((1 << bits) - 1)
        planes.append(_pack_plane(part, bits, form, backend))
        low += bits
    return [*planes, _pack_scales(form, read)]


def _pack_plane(codes: np.ndarray, bits: int, form: Format, backend: Backend) -> np.ndarray:
    rows, columns = codes.shape
    groups = groups_of(form, columns)
    plane = _plane_shape(form, bits, rows, groups, backend)
    if backend == "triton":
        fields, width, word = 8 // bits, form.group, np.uint8
        filled = plane[1] * fields
    else:
        fields, width, word = 32 // bits, _SUBLANES, np.uint32
        filled = plane[0] * fields
    codes = np.pad(codes, ((0, 0), (0, filled - columns))).reshape(rows, -1, fields, width)
    if backend == "tpu" and form.paired:
        halves = codes.reshape(rows, -1, fields // 2, width, 2)
        codes = np.concatenate([halves[..., 0], halves[..., 1]], axis=2)
    packed = np.zeros((rows, codes.shape[1], width), word)
    for field in range(fields):
        packed |= codes[:, :, field].astype(word) << word(bits * field)
    packed = packed.reshape(rows, -1)
    return packed if backend == "triton" else packed.T


def _pack_scales(form: Format, read: Groups) -> np.ndarray:
    if read.supers is not None:
        subs = read.supers.reshape(len(read.supers), -1, 4).astype(np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)
        supers = _halves(read.scales, form)
        if read.offsets is not None:
            supers |= _halves(read.offsets, form) << np.uint32(16)
        return np.concatenate([np.bitwise_or.reduce(subs, axis=-1), supers], axis=1).T
    groups = groups_of(form, read.scales.shape[1] * form.group)
    fill = ((0, 0), (0, groups - read.scales.shape[1]))
    scales = _halves(np.pad(read.scales, fill), form)
    if read.offsets is not None:
        low, high = scales, _halves(np.pad(read.offsets, fill), form)
    else:
        low, high = scales[:, ::2], scales[:, 1::2]
    return (low | high << np.uint32(16)).T


def _halves(values: np.ndarray, form: Format) -> np.ndarray:
    """The bits of the 16-bit floats nearest to `values`, as uint32."""
    if not form.wide and not (np.abs(values) <= _LARGEST_HALF).all():
        raise ValueError(f"scales must be at most {_LARGEST_HALF:.0f} for this layout; load the weight as blocks")
    narrow = values.astype(jnp.bfloat16 if form.wide else np.float16)
    return narrow.view(np.uint16).astype(np.uint32)


def unpack(stored: Stored, kind: str, matrix: tuple[int, int], backend: Backend) -> jax.Array:
    """The weight itself, `float32[*lead, rows, columns]`."""
    rows, columns = matrix
    if backend == "tpu":
        stored = (*(jnp.swapaxes(plane, -1, -2) for plane in stored[:-1]), stored[-1])
    stored = (*stored[:-1], jnp.swapaxes(stored[-1], -1, -2))
    return _decode(stored, FORMATS[kind], backend, columns)[..., :rows, :columns]


def take_rows(stored: Stored, kind: str, matrix: tuple[int, int], ids: jax.Array, backend: Backend) -> jax.Array:
    """`unpack(...)[ids]` of a single matrix, decoding only those rows: `float32[*ids, columns]`."""
    ids_flat = jnp.clip(ids.reshape(-1), 0, matrix[0] - 1)
    if backend == "triton":
        planes = [jnp.take(plane, ids_flat, axis=0, mode="clip") for plane in stored[:-1]]
        scales = jnp.take(stored[-1], ids_flat, axis=1, mode="clip").T
    else:
        *planes, scales = (_take_columns(part, ids_flat) for part in stored)
    decoded = _decode((*planes, scales), FORMATS[kind], backend, matrix[1])[:, : matrix[1]]
    return decoded.reshape(*ids.shape, matrix[1])


def _take_columns(part: jax.Array, ids: jax.Array) -> jax.Array:
    """`part[:, ids].T`, one register's width of columns after the other.

    For a gather of columns, or for slices of one, a TPU first transposes the whole array.
    """
    lanes = ROWS["tpu"]

    def one(i: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice_in_dim(part, i // lanes * lanes, lanes, axis=1)
        own = jax.lax.broadcasted_iota(ids.dtype, (1, lanes), 1) == i % lanes
        return jnp.sum(jnp.where(own, window, 0), axis=1, dtype=part.dtype)

    return jax.lax.map(one, ids)


def _decode(stored: Stored, form: Format, backend: Backend, columns: int) -> jax.Array:
    """Rows of planes and of scales, both along the last axis, as `float32[*lead, rows, filled columns]`."""
    scales, second = _decode_scales(stored[-1], form, columns)
    columns = scales.shape[-1] * form.group
    codes, low = jnp.zeros((), jnp.uint8), 0
    for plane, bits in zip(stored[:-1], form.planes, strict=True):
        codes = codes | _unpack_plane(plane, bits, form, backend)[..., :columns] << low
        low += bits
    grouped = code_values(codes, form).reshape(*scales.shape, form.group)
    weights = grouped * scales[..., None]
    if form.offset:
        weights = weights + second[..., None]
    return weights.reshape(*weights.shape[:-2], columns)


def _decode_scales(words: jax.Array, form: Format, columns: int) -> tuple[jax.Array, jax.Array]:
    """Scales and offsets, if there are any, of all groups along the last axis."""
    groups = groups_of(form, columns)
    words = words[..., : words_of(form, groups)]
    supers = words[..., groups // 4 :] if form.supers else words
    first, second = (half_to_float(supers >> shift & 0xFFFF, form.wide) for shift in (0, 16))
    if not form.supers:
        paired = jnp.stack([first, second], axis=-1).reshape(*words.shape[:-1], -1)
        return (first, second) if form.offset else (paired, second)
    shifts = (jnp.arange(4, dtype=jnp.uint32) * 8).reshape((1,) * words.ndim + (4,))
    own = (words[..., : groups // 4, None] >> shifts & 0xFF).reshape(*words.shape[:-1], groups)
    first, second = (jnp.repeat(part, 16, axis=-1) for part in (first, second))
    if form.offset:
        return first * (own & 15).astype(jnp.float32), second * (own >> 4).astype(jnp.float32)
    return first * (own.astype(jnp.float32) - 32), second


def _unpack_plane(plane: jax.Array, bits: int, form: Format, backend: Backend) -> jax.Array:
    width, fields = (form.group, 8 // bits) if backend == "triton" else (_SUBLANES, 32 // bits)
    words = plane.reshape(*plane.shape[:-1], -1, 1, width)
    shifts = (jnp.arange(fields, dtype=plane.dtype) * bits).reshape((1,) * (words.ndim - 2) + (fields, 1))
    codes = (words >> shifts & ((1 << bits) - 1)).astype(jnp.uint8)
    if backend == "tpu" and form.paired:
        codes = jnp.stack(jnp.split(codes, 2, axis=-2), axis=-1)
    return codes.reshape(*plane.shape[:-1], -1)


def code_values(codes: jax.Array, form: Format) -> jax.Array:
    """`v(code)` in float32."""
    if form.signed:
        return jax.lax.bitcast_convert_type(codes, jnp.int8).astype(jnp.float32)
    if form.table is None:
        return codes.astype(jnp.float32) - form.zero
    values = jnp.full(codes.shape, form.table[0], jnp.float32)
    for code, value in enumerate(form.table[1:], 1):
        values = jnp.where(codes == code, jnp.float32(value), values)
    return values


def half_to_float(bits: jax.Array, wide: bool) -> jax.Array:
    """The float32 values of 16-bit floats, given as integers of any width."""
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16 if wide else jnp.float16).astype(
        jnp.float32
    )
