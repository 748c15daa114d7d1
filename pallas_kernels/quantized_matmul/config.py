"""Block sizes of the kernels: frozen configurations, and the rules that pick one for a shape."""

from __future__ import annotations

import dataclasses
import math

from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import WHOLE_COLUMNS

DECODE_TOKENS = 16
"""Up to so many rows of activations take the decode kernel on CUDA."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """`rows` of the weight in a block, its `warps` and pipeline `stages`; `groups` in a trip of the loop.

    `splits`: parts of the columns, each a block of its own.
    """

    rows: int = 32
    warps: int = 2
    stages: int = 4
    groups: int = 8
    splits: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """`tokens` and weight `rows` of an output tile, its `warps` and pipeline `stages`; `groups` in a trip."""

    tokens: int = 128
    rows: int = 128
    warps: int = 8
    stages: int = 3
    groups: int = 8


# Blocks of the decode kernel that keep every multiprocessor's memory busy: four for each of an H100's 132.
_BLOCKS = 512
# A pipeline of four stages is full from the fourth trip on.
_FEWEST_TRIPS = 4


def decode_config(form: Format, rows: int, groups: int) -> DecodeConfig:
    """Blocks of 32 rows, and as many splits as fill a large GPU, as long as a split keeps its pipeline full."""
    step = 256 // form.group
    trips, splits = groups // step, 1
    while rows // 32 * splits < _BLOCKS and trips % (2 * splits) == 0 and trips // (2 * splits) >= _FEWEST_TRIPS:
        splits *= 2
    return DecodeConfig(groups=step, splits=splits)


def prefill_config(form: Format, tokens: int, rows: int) -> PrefillConfig:
    """Tiles of 128 by 128, or of fewer tokens by 64, where the sizes divide by that; else by their power of two.

    Three stages of a trip's operands fit an A100's shared memory where a trip has up to 64 columns.
    """
    tile_tokens = math.gcd(tokens, 128)
    tile_rows = math.gcd(rows, 128 if tile_tokens == 128 else 64)
    warps = 8 if tile_rows * tile_tokens >= 128 * 128 else 4
    stages = 3 if form.fields * form.group <= 64 else 2
    return PrefillConfig(tokens=tile_tokens, rows=tile_rows, warps=warps, stages=stages, groups=form.fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuConfig:
    """A step's block: `tokens` of activations, `rows` and `columns` of the weight."""

    tokens: int
    rows: int
    columns: int


# Codes of a block whose decoded values stay within the vector memory that a kernel is given.
_TPU_BLOCK = 2**19


_TPU_DECODE_COLUMNS = 2048


def tpu_decode_config(tokens: int, rows: int, columns: int) -> TpuConfig:
    """Up to 2,048 columns and 512 rows at a time: codes take two bytes each in vector memory, and no more."""
    divisors = [n for n in (256, 512, 1024, _TPU_DECODE_COLUMNS) if columns % n == 0]
    block = columns if columns <= WHOLE_COLUMNS or not divisors else divisors[-1]
    fitting = [n for n in (512, 384, 256, 128) if rows % n == 0 and n * block <= 2 * _TPU_BLOCK]
    return TpuConfig(tokens=tokens, rows=fitting[0] if fitting else 128, columns=block)


def tpu_config(tokens: int, rows: int, columns: int) -> TpuConfig:
    """Up to 1,024 columns and 512 rows at a time; columns that no multiple of 256 divides stay whole."""
    # Blocks of 768 would have scales that begin inside a register and end in the next.
    divisors = [n for n in (256, 512, WHOLE_COLUMNS) if columns % n == 0]
    block = columns if columns <= WHOLE_COLUMNS or not divisors else divisors[-1]
    fitting = [n for n in (512, 384, 256, 128) if rows % n == 0 and n * block <= _TPU_BLOCK]
    tile = next((n for n in range(256, 7, -8) if tokens % n == 0), tokens)
    return TpuConfig(tokens=tile, rows=fitting[0] if fitting else 128, columns=block)
