"""The weight formats that the kernels multiply, by what their codes stand for and how their scales are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of IQ4_NL and IQ4_XS by code (`kvalues_iq4nl` in ggml-common.h)."""
DOUBLED_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of e2m1 by code (OCP Microscaling Formats 1.0): sign, two bits of exponent, one of mantissa."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """`w = scale v(code) + offset` for groups of `group` weights along a row.

    `planes`: how the bits of a code are cut, lowest first; a code of 5 bits is kept as 4 and 1. Values are
    `v = code - zero`, a signed byte where `planes` is (8,), or `table[code]`. `offset`: whether there is one. Scales
    and offsets are half floats, or bfloat16 where `wide`: powers of two that a half cannot hold. With `supers` they are
    integers of a byte, `scale | offset << 4` or `scale + 32`, times half floats of 256 weights.
    """

    planes: tuple[int, ...]
    group: Literal[16, 32]
    zero: int = 0
    table: tuple[int, ...] | None = None
    offset: bool = False
    wide: bool = False
    supers: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return sum(self.planes)

    @property
    def signed(self) -> bool:
        """Whether codes are two's complement bytes."""
        return self.planes == (8,)

    @property
    def paired(self) -> bool:
        """Whether `128 + code` is a bfloat16 whose mantissa is the code: TPUs make two of them at a time."""
        return self.table is None and not self.signed

    @property
    def exact_on_tpu(self) -> bool:
        """Whether up to 16 rows of activations meet exact codes on TPU too, and their sums the scales."""
        return self.paired and not self.supers

    @property
    def takes_int8(self) -> bool:
        """Whether many rows of activations in 8 bits meet its codes on CUDA: a group fills a step of 32 products."""
        return self.group == 32

    @property
    def fields(self) -> int:
        """Groups that share a byte of the narrowest plane: kernels take a multiple of so many at a time."""
        return max(2, 8 // min(self.planes))


_FOUR, _FIVE, _SIX, _EIGHT = (4,), (4, 1), (4, 2), (8,)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "Q4_0": Format(planes=_FOUR, group=32, zero=8),
        "Q4_1": Format(planes=_FOUR, group=32, offset=True),
        "Q5_0": Format(planes=_FIVE, group=32, zero=16),
        "Q5_1": Format(planes=_FIVE, group=32, offset=True),
        "Q8_0": Format(planes=_EIGHT, group=32),
        "Q2_K": Format(planes=(2,), group=16, offset=True, supers=True),
        "Q3_K": Format(planes=(2, 1), group=16, zero=4, supers=True),
        "Q4_K": Format(planes=_FOUR, group=32, offset=True),
        "Q5_K": Format(planes=_FIVE, group=32, offset=True),
        "Q6_K": Format(planes=_SIX, group=16, zero=32),
        "IQ4_NL": Format(planes=_FOUR, group=32, table=NONLINEAR),
        "IQ4_XS": Format(planes=_FOUR, group=32, table=NONLINEAR),
        "MXFP4": Format(planes=_FOUR, group=32, table=DOUBLED_E2M1, wide=True),
        "NVFP4": Format(planes=_FOUR, group=16, table=DOUBLED_E2M1),
    }
)
"""By the names of `GGMLType`."""
