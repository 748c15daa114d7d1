"""Reads GGML's weight blocks into codes, scales and offsets of groups, on the host.

The layouts of the blocks are those of ggml-common.h; `w = scale v(code) + offset`, see `formats`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """`codes uint8[rows, columns]`; `scales`, and `offsets` or None, `float32[rows, groups]`.

    With `supers`, the bytes of groups `uint8[rows, groups]`, scales and offsets are those of 256 weights.
    """

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None
    supers: np.ndarray | None = None


BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q2_K": (256, 84),
        "Q3_K": (256, 110),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
        "IQ4_NL": (32, 18),
        "IQ4_XS": (256, 136),
        "MXFP4": (32, 17),
        "NVFP4": (64, 36),
    }
)
"""Weights and bytes of a block."""


def read_groups(kind: str, raw: np.ndarray) -> Groups:
    """The groups of rows `uint8[rows, row_bytes]` of the format `kind`."""
    rows = len(raw)
    read = _READERS[kind](raw.reshape(-1, BLOCKS[kind][1]))
    offsets, supers = (None if part is None else part.reshape(rows, -1) for part in (read.offsets, read.supers))
    scales = read.scales.reshape(rows, -1)
    return Groups(codes=read.codes.reshape(rows, -1), scales=scales, offsets=offsets, supers=supers)


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """The half float at byte `at` of each block, `float32[blocks, 1]`."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low halves of the bytes along the last axis, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def _q4_0(raw: np.ndarray) -> Groups:
    return Groups(codes=_nibbles(raw[:, 2:]), scales=_half(raw, 0))


def _q4_1(raw: np.ndarray) -> Groups:
    return Groups(codes=_nibbles(raw[:, 4:]), scales=_half(raw, 0), offsets=_half(raw, 2))


def _q5_0(raw: np.ndarray) -> Groups:
    return Groups(codes=_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), scales=_half(raw, 0))


def _q5_1(raw: np.ndarray) -> Groups:
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return Groups(codes=codes, scales=_half(raw, 0), offsets=_half(raw, 2))


def _q8_0(raw: np.ndarray) -> Groups:
    return Groups(codes=raw[:, 2:], scales=_half(raw, 0))


def _two_bit_codes(raw: np.ndarray) -> np.ndarray:
    return raw.reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3


def _q2_k(raw: np.ndarray) -> Groups:
    codes = _two_bit_codes(raw[:, 16:80])
    return Groups(codes=codes, scales=_half(raw, 80), offsets=-_half(raw, 82), supers=raw[:, :16])


def _q3_k(raw: np.ndarray) -> Groups:
    high = raw[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = _two_bit_codes(raw[:, 32:96]).reshape(-1, 8, 32) | high << 2
    low = _nibbles(raw[:, 96:104])
    upper = (raw[:, None, 104:108] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(-1, 16)
    return Groups(codes=codes, scales=_half(raw, 108), supers=low | upper << 4)


def _six_bit_scales(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minima in 12 bytes of Q4_K and Q5_K."""
    first, second, low = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 63, (low & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (low >> 4) | (second >> 2 & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_affine(raw: np.ndarray, codes: np.ndarray) -> Groups:
    scales, minima = _six_bit_scales(raw[:, 4:16])
    return Groups(codes=codes, scales=_half(raw, 0) * scales, offsets=-_half(raw, 2) * minima)


def _q4_k(raw: np.ndarray) -> Groups:
    return _k_affine(raw, _nibbles(raw[:, 16:].reshape(-1, 4, 32)))


def _q5_k(raw: np.ndarray) -> Groups:
    low = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_affine(raw, low | high << 4)


def _q6_k(raw: np.ndarray) -> Groups:
    low = raw[:, :128].reshape(-1, 2, 2, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    codes = np.concatenate([low & 15, low >> 4], axis=2) | high << 4
    return Groups(codes=codes, scales=_half(raw, 208) * raw[:, 192:208].view(np.int8))


def _iq4_nl(raw: np.ndarray) -> Groups:
    return _q4_0(raw)


def _iq4_xs(raw: np.ndarray) -> Groups:
    low = raw[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    high = np.ascontiguousarray(raw[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low.reshape(-1, 8) | high << 4).astype(np.float32) - 32
    return Groups(codes=_nibbles(raw[:, 8:].reshape(-1, 8, 16)), scales=_half(raw, 0) * scales)


def _mxfp4(raw: np.ndarray) -> Groups:
    return Groups(codes=_nibbles(raw[:, 1:]), scales=np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128))


def _nvfp4(raw: np.ndarray) -> Groups:
    exponent, mantissa = (raw[:, :4] >> 3 & 15).astype(np.int32), (raw[:, :4] & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    scales = np.where(exponent == 0, mantissa * np.float32(2.0**-10), normal)
    scales = np.where(raw[:, :4] == 0x7F, 0, scales).astype(np.float32)
    return Groups(codes=_nibbles(raw[:, 4:].reshape(-1, 4, 8)), scales=scales)


_READERS: Mapping[str, Callable[[np.ndarray], Groups]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
        "MXFP4": _mxfp4,
        "NVFP4": _nvfp4,
    }
)
