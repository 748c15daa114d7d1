"""MLX's affine layout: packed codes with a scale and a bias for each group of a row, `w = scale * code + bias`.

::

    codes    uint32[*lead, rows, columns * bits / 32]    field i of word j, from the lowest bit
                                                         = code of column (32 / bits) j + i
    scales   float32[*lead, rows, columns / group]
    biases   float32[*lead, rows, columns / group]

Codes have 4 or 8 bits, groups 32 or 128 weights (`mlx.core.quantize`, mode "affine"). In float32 no scale is rounded,
also not those of Q4_K and Q5_K, products of 11 and 6 bits; and MLX multiplies in the widest type among activations,
scales and biases, so that narrow scales would be widened anew in every step beside float32 activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from pallas_kernels.quantized_matmul.blocks import BLOCKS, read_groups
from realm_jax.gguf import GGMLType

Affine = tuple[Any, Any, Any]
"""Codes, scales and biases."""

# Rows that are packed at a time, so that temporaries stay small beside the weight.
_PIECE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineFormat:
    """How a type's codes are kept: their `bits`, the weights of a `group`, and the code that stands for zero.

    `zero` is None where a block has an offset of its own.
    """

    bits: int
    group: int = 32
    zero: int | None = None


FORMATS: Mapping[GGMLType, AffineFormat] = MappingProxyType(
    {
        GGMLType.Q4_0: AffineFormat(bits=4, zero=8),
        GGMLType.Q4_1: AffineFormat(bits=4),
        GGMLType.Q5_0: AffineFormat(bits=8, zero=16),
        GGMLType.Q5_1: AffineFormat(bits=8),
        GGMLType.Q8_0: AffineFormat(bits=8, zero=128),
        GGMLType.Q8_1: AffineFormat(bits=8, zero=128),
        GGMLType.Q4_K: AffineFormat(bits=4),
        GGMLType.Q5_K: AffineFormat(bits=8),
        GGMLType.Q1_0: AffineFormat(bits=4, group=128, zero=1),
        GGMLType.TQ1_0: AffineFormat(bits=4, group=128, zero=1),
        GGMLType.TQ2_0: AffineFormat(bits=4, group=128, zero=1),
    }
)
"""Types whose weights are affine in a code of at most 8 bits over at least 32 weights, without rounding: all but Q8_K,
whose float32 scale times a code has more bits than float32."""


def stored_shapes(kind: GGMLType, shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of the three arrays that keep a weight `[*lead, rows, columns]`."""
    form, (*lead, columns) = FORMATS[kind], shape
    groups = jax.ShapeDtypeStruct((*lead, columns // form.group), jnp.float32)
    return jax.ShapeDtypeStruct((*lead, columns * form.bits // 32), jnp.uint32), groups, groups


def pack(data: np.ndarray, kind: GGMLType, shape: tuple[int, ...]) -> Affine:
    """The arrays of a weight `[*lead, rows, columns]` whose blocks are the bytes `data`, on the host."""
    arrays = tuple(np.empty(array.shape, array.dtype) for array in stored_shapes(kind, shape))
    flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
    raw = data.reshape(len(flat[0]), -1)
    for start in range(0, len(raw), _PIECE):
        rows = slice(start, start + _PIECE)
        for target, part in zip(flat, _pack_rows(raw[rows], kind), strict=True):
            target[rows] = part
    codes, scales, biases = arrays
    return codes, scales, biases


def _pack_rows(raw: np.ndarray, kind: GGMLType) -> Affine:
    form = FORMATS[kind]
    codes, scales, biases = _read(raw, kind)
    if biases is None:
        assert form.zero is not None
        biases = scales * np.float32(-form.zero)
    columns = codes.shape[1]
    fields = codes if form.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    words = np.ascontiguousarray(fields).view("<u4")
    repeats = columns // form.group // scales.shape[1]
    return words, np.repeat(scales, repeats, axis=1), np.repeat(biases, repeats, axis=1)


def _read(raw: np.ndarray, kind: GGMLType) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes `uint8[rows, columns]` and the file's own scales and offsets, if it has any, `float32[rows, *]`."""
    rows = len(raw)
    if kind.name in BLOCKS:
        read = read_groups(kind.name, raw)
        codes = read.codes ^ 0x80 if FORMATS[kind].zero == 128 else read.codes  # signed bytes, counted from -128
        return codes, read.scales, read.offsets
    codes, scales = _LONE_SCALES[kind](raw.reshape(-1, kind.type_size))
    return codes.reshape(rows, -1), scales.reshape(rows, -1), None


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(np.float32)


def _q8_1(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return raw[:, 4:] ^ 0x80, _half(raw, 0)


def _q1_0(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 and 2, so that they count from a zero between them."""
    return np.unpackbits(raw[:, 2:], axis=1, bitorder="little") << 1, _half(raw, 0)


def _tq2_0(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return raw[:, :64].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3, _half(raw, 64)


def _tq1_0(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digit p of a byte is the integer part of 3 times what is left of the fraction `byte / 256` after p digits."""
    pieces = []
    for start, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = 3 ** np.arange(digits, dtype=np.uint16)[:, None]
        fractions = raw[:, None, start:end] * powers & 0xFF
        pieces.append((fractions * 3 >> 8).astype(np.uint8).reshape(len(raw), -1))
    return np.concatenate(pieces, axis=1), _half(raw, 52)


_LONE_SCALES: Mapping[GGMLType, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = MappingProxyType(
    {
        GGMLType.Q8_1: _q8_1,
        GGMLType.Q1_0: _q1_0,
        GGMLType.TQ1_0: _tq1_0,
        GGMLType.TQ2_0: _tq2_0,
    }
)


def unpack(stored: Affine, kind: GGMLType) -> Float32[Array, "*lead columns"]:
    """The weight itself: `scale * code + bias`.

    Products have at most 22 bits, and with a bias that stands for a code of zero the sum is the file's own product, so
    the result is that of `decode_blocks`, bit for bit: only a sum with an offset of the file rounds.
    """
    form = FORMATS[kind]
    words, scales, biases = stored
    shifts = (jnp.arange(32 // form.bits, dtype=jnp.uint32) * form.bits).reshape((1,) * words.ndim + (-1,))
    codes = words[..., None] >> shifts & jnp.uint32((1 << form.bits) - 1)
    grouped = codes.reshape(*scales.shape, form.group).astype(jnp.float32)
    weights = grouped * scales[..., None] + biases[..., None]
    return weights.reshape(*scales.shape[:-1], -1)


def take_rows(stored: Affine, kind: GGMLType, ids: Int[Array, "*ids"]) -> Float32[Array, "*ids columns"]:
    """`unpack(stored)[ids]` of a single matrix, decoding only those rows."""
    codes, scales, biases = (jnp.take(part, ids, axis=0, mode="clip") for part in stored)
    return unpack((codes, scales, biases), kind)
