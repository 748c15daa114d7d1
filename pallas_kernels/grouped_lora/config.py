"""Block sizes of grouped_lora's kernels, and the rules that pick them for a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from pallas_kernels.grouped_lora.shape import Shape
from pallas_kernels.routing import block_rows, number_of_blocks

# Rows of a tile that tensor cores and registers of bfloat16 take at least, and at most by the bytes of A's and B's
# numbers: products of float32 on CUDA take no tensor cores, and hold all of their factors in registers.
_LEAST = 16
_MOST: Mapping[int, int] = MappingProxyType({2: 64, 4: 16})


def rows_of(shape: Shape) -> int:
    """Rows of a block of tokens that have one adapter."""
    return block_rows(shape.tokens, shape.adapters, least=_LEAST, most=_MOST[shape.itemsize])


def blocks_of(shape: Shape) -> int:
    """How many blocks there are, those that are not used included."""
    return number_of_blocks(shape.tokens, shape.adapters, rows_of(shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """`ranks`: the rank, filled up to what a tile has. `warps` and pipeline `stages` of both kernels.

    Shrinking takes `columns` in a trip of its loop and cuts the columns into `splits`, each a block of the grid;
    expanding makes a tile of `outputs` in each of the `trips` of its loop.
    """

    ranks: int
    columns: int
    splits: int
    outputs: int
    trips: int
    warps: int = 4
    stages: int = 3


# Blocks that keep an H100 busy: two for each of its 132 multiprocessors, four where they are short.
_BUSY, _BLOCKS = 264, 528
_MOST_SPLITS = 16
# Trips of a split, below which what is loaded next is not on its way meanwhile.
_FEWEST_TRIPS = 2
# Bytes of tiles of x and A that a trip loads, of which shared memory holds one for each stage.
_TRIP_BYTES = 2**15
# Outputs of a tile by the same, and how many tiles a loop makes at most.
_TILE_OUTPUTS: Mapping[int, int] = MappingProxyType({2: 128, 4: 64})
_MOST_TRIPS = 2


def triton_config(shape: Shape) -> TritonConfig:
    """Splits of columns, and of outputs, while blocks of rows alone are too few to keep the device busy."""
    rows, blocks = rows_of(shape), blocks_of(shape)
    ranks = max(1 << (shape.rank - 1).bit_length(), _LEAST)
    columns = 128
    while columns > 32 and (rows + ranks) * columns * shape.itemsize > _TRIP_BYTES:
        columns //= 2
    trips, splits = -(-shape.columns // columns), 1
    while splits < _MOST_SPLITS and 2 * splits * blocks <= _BLOCKS and trips // (2 * splits) >= _FEWEST_TRIPS:
        splits *= 2
    outputs = _TILE_OUTPUTS[shape.itemsize]
    tiles, each = -(-shape.outputs // outputs), 1
    while each < _MOST_TRIPS and blocks * -(-tiles // (2 * each)) >= _BUSY:
        each *= 2
    return TritonConfig(ranks=ranks, columns=columns, splits=splits, outputs=outputs, trips=each)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuConfig:
    """`rows` of a block; `columns` of a step that shrinks, `outputs` of one that expands."""

    rows: int
    columns: int
    outputs: int


# Bytes of an operand's tile, of which vector memory holds two each of four operands.
_TPU_TILE = 2**20
_LANES = 128


def tpu_config(shape: Shape) -> TpuConfig:
    """Tiles of at most a megabyte; columns or outputs that no multiple of 128 divides stay whole."""
    rows = rows_of(shape)
    most = _TPU_TILE // (4 * max(rows, shape.rank))
    return TpuConfig(rows=rows, columns=_divisor(shape.columns, most), outputs=_divisor(shape.outputs, most))


def _divisor(size: int, most: int) -> int:
    """The largest multiple of a register's lanes that divides `size` and is at most `most`; else all of it."""
    if size <= most or size % _LANES:
        return size
    return max(n for n in range(_LANES, max(most, _LANES) + 1, _LANES) if size % n == 0)
