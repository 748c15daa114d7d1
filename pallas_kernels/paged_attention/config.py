"""What is static in an attention, block sizes of its kernels, and the rules that pick them for a shape."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

from pallas_kernels.paged_attention.pool import LEAST
from pallas_kernels.paged_attention.tiles import number_of_tiles
from pallas_kernels.tuning import choose


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """`softmax(softcap(scale q k)) v` under a causal mask and a window.

    `window` w lets position p see (p - w, p]; `softcap` c maps a score s to c tanh(s / c).

    Raises:
        ValueError: a window below 1 or a softcap that is not positive.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be positive, got {self.softcap}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a call. `pages`: width of the block table; `width`: channels of a head in the pool.

    `scaled`: the pool has 8 bits, and scales. `itemsize`: bytes of the numbers that are multiplied.
    """

    tokens: int
    sequences: int
    heads: int
    kv_heads: int
    width: int
    block_size: int
    pages: int
    scaled: bool = False
    itemsize: int = 2

    @property
    def group(self) -> int:
        """Heads that share keys."""
        return self.heads // self.kv_heads

    @property
    def tokens_each(self) -> int:
        """Tokens of a sequence, on average."""
        return -(-self.tokens // self.sequences)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that tables know; `context` is what the block table reaches."""
        return {
            "tokens": self.tokens_each,
            "sequences": self.sequences,
            "group": self.group,
            "width": self.width,
            "context": self.pages * self.block_size,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """`rows` of a tile, one for each head of each token; `keys` of a trip of the loop; `warps`, pipeline `stages`.

    `splits`: parts of a tile's context, each a block of its own.
    """

    rows: int
    keys: int = 64
    warps: int = 4
    stages: int = 3
    splits: int = 1


# Blocks that keep an H100 busy: four for each of its 132 multiprocessors.
_BLOCKS = 528
_MOST_SPLITS = 16
# Trips of a split below which merging costs more than it wins.
_FEWEST_TRIPS = 4
# Numbers that registers hold beside others, a trip's keys where float32 takes no tensor cores, and sums of four warps.
_MOST_KEYS, _MOST_SUMS = 4096, 8192


def triton_heuristic(shape: Shape, **given: int) -> TritonConfig:
    """Rows for a sequence's tokens, at most 64 of them or those of one token; splits where tiles are few.

    Fewer keys, or more warps, where a thread's registers would not hold its share. Fields that are given stay, and the
    splits follow from the others.
    """
    rows = max(power_of_two(min(shape.tokens_each * shape.group, 64)), power_of_two(shape.group), LEAST)
    keys = math.gcd(shape.block_size, 64)
    while shape.itemsize > 2 and keys > LEAST and keys * shape.width > _MOST_KEYS:
        keys //= 2
    chosen = {"rows": rows, "keys": keys, **given}
    config = TritonConfig(**{"warps": 8 if chosen["rows"] * shape.width > _MOST_SUMS else 4, **chosen})
    tokens = max(config.rows // shape.group, 1)
    blocks = number_of_tiles(shape.tokens, shape.sequences, tokens) * shape.kv_heads
    trips, splits = shape.pages * shape.block_size // config.keys, 1
    while splits < _MOST_SPLITS and 2 * splits * blocks <= _BLOCKS and trips // (2 * splits) >= _FEWEST_TRIPS:
        splits *= 2
    return config if "splits" in given else dataclasses.replace(config, splits=splits)


def triton_problem(shape: Shape, config: TritonConfig) -> str:
    """Why a configuration does not fit; empty where it does."""
    least = max(power_of_two(shape.group), LEAST)
    if config.rows != power_of_two(config.rows) or config.rows < least:
        return f"rows must be a power of two from {least} on, got {config.rows}"
    if config.keys != power_of_two(config.keys) or config.keys < LEAST or shape.block_size % config.keys:
        return f"keys must be a power of two from {LEAST} on that divides {shape.block_size}, got {config.keys}"
    if config.warps != power_of_two(config.warps):
        return f"warps must be a power of two, got {config.warps}"
    return ""


def triton_candidates(shape: Shape) -> list[TritonConfig]:
    """Legal configurations for a tuner, the heuristic's first."""
    values = {"rows": (16, 32, 64, 128), "keys": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (2, 3, 4)}
    combined = (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
    made = (triton_heuristic(shape, **fields) for fields in combined)
    legal = (config for config in made if not triton_problem(shape, config))
    return list(dict.fromkeys([triton_heuristic(shape), *legal]))


NAME = "paged_attention"
"""CUDA's kernel in tables of block sizes; what a TPU takes follows from the shape."""


def config_for(shape: Shape, format: str, given: TritonConfig | None = None) -> TritonConfig:
    """The configuration of CUDA's kernel: the given one, a table's, or the heuristic's; `format` is the pool's dtype.

    Raises:
        ValueError: the given one does not fit the shape, or a table is malformed.
    """
    problem = functools.partial(triton_problem, shape)
    if given is None:
        return choose(NAME, format, shape.sizes, functools.partial(triton_heuristic, shape), problem)
    if problem(given):
        raise ValueError(f"{NAME}: {problem(given)}")
    return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuConfig:
    """`size` tokens of a tile, `rows` of it in registers, `heads` of keys in a step of the grid.

    `pieces` of `piece` positions each make the keys of a trip.
    """

    size: int
    rows: int
    heads: int
    piece: int
    pieces: int


# Positions of a trip, rows of a tile, and rows of all heads of a grid step: together below a v5e's vector memory.
_TPU_KEYS, _TPU_ROWS, _TPU_STEP = 256, 128, 1024
# Channels of all keys of a trip.
_TPU_BUFFER = 2**19


def tpu_config(shape: Shape) -> TpuConfig:
    """Tiles of a power of two tokens, and as many heads a step as vector memory holds."""
    size = power_of_two(min(shape.tokens_each, max(_TPU_ROWS // shape.group, 1)))
    size = size if size * shape.group <= _TPU_ROWS else max(size // 2, 1)
    rows = -(-size * shape.group // LEAST) * LEAST
    budget = _TPU_STEP * 256 // (2 * shape.width)
    heads = max(n for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0 and (n == 1 or n * rows <= budget))
    # A row of scales is cut where a register's lanes end, or not at all.
    whole = shape.block_size if shape.block_size <= _TPU_KEYS else 128
    least = whole if shape.scaled else LEAST
    piece = max(n for n in range(least, _TPU_KEYS + 1, least) if shape.block_size % n == 0)
    keys = _TPU_KEYS
    while keys > piece and heads * keys * shape.width > _TPU_BUFFER:
        keys //= 2
    return TpuConfig(size=size, rows=rows, heads=heads, piece=piece, pieces=max(keys // piece, 1))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
