"""Block sizes of the kernels: frozen configurations, the rules that they keep, and how one is picked for a shape."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.formats import FORMATS, Format
from pallas_kernels.quantized_matmul.layouts import WHOLE_COLUMNS
from pallas_kernels.tuning import choose

Activations = Literal["bfloat16", "int8"]
"""What kernels multiply weights by: activations as they are, or rounded to 8 bits in groups of 32."""

DECODE_TOKENS = 16
"""Up to so many rows of activations take the decode kernel on CUDA."""

# Rows of a matrix that one instruction of the tensor cores takes.
_MMA_ROWS = 16


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatmulShape:
    """What a kernel multiplies, filled up to whole tiles: `tokens` rows of activations, a weight `[rows, columns]`.

    `kind`: the weight's format. `experts`: how many blocks of so many tokens there are, each with rows of its own.
    `activations`: what the kernel multiplies.
    """

    kind: str
    tokens: int
    rows: int
    columns: int
    experts: int = 1
    activations: Activations = "bfloat16"

    @property
    def form(self) -> Format:
        """The weight's format."""
        return FORMATS[self.kind]

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.columns // self.form.group

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that tables know."""
        return {"tokens": self.tokens, "rows": self.rows, "columns": self.columns}


def padded_tokens(tokens: int) -> int:
    """Rows of activations that the kernels take: 8, 16, then multiples of a tile."""
    if tokens <= DECODE_TOKENS:
        return 8 if tokens <= 8 else 16
    tile = next((size for size in (32, 64) if tokens <= size), 128)
    return math.ceil(tokens / tile) * tile


# Blocks of the decode kernel that keep every multiprocessor's memory busy: four for each of an H100's 132.
_BLOCKS = 512
# A pipeline of four stages is full from the fourth trip on.
_FEWEST_TRIPS = 4


def decode_heuristic(shape: MatmulShape, **given: int) -> DecodeConfig:
    """Blocks of 32 rows, and as many splits as fill a large GPU, as long as a split keeps its pipeline full.

    Fields that are given stay, and the splits follow from the others.
    """
    config = DecodeConfig(**{"groups": 256 // shape.form.group, **given})
    trips, splits = shape.groups // config.groups, 1
    tiles = shape.experts * (shape.rows // config.rows)
    while tiles * splits < _BLOCKS and trips % (2 * splits) == 0 and trips // (2 * splits) >= _FEWEST_TRIPS:
        splits *= 2
    return config if "splits" in given else dataclasses.replace(config, splits=splits)


def decode_problem(shape: MatmulShape, config: DecodeConfig) -> str:
    """Why a configuration does not fit; empty where it does."""
    step = 16 if shape.form.supers else shape.form.fields
    if not _power_of_two(config.rows) or config.rows < _MMA_ROWS or shape.rows % config.rows:
        return f"rows must be a power of two from {_MMA_ROWS} on that divides {shape.rows}, got {config.rows}"
    if not _power_of_two(config.warps) or config.warps * _MMA_ROWS > config.rows:
        return f"warps must be a power of two up to rows / {_MMA_ROWS}, got {config.warps} for {config.rows} rows"
    if config.groups % step:
        return f"groups must be a multiple of {step} for {shape.kind}, got {config.groups}"
    trips = shape.groups // config.groups
    if trips % config.splits or config.splits > max(trips, 1):
        return f"splits must divide the {trips} trips of {config.groups} groups, got {config.splits}"
    return ""


def prefill_heuristic(shape: MatmulShape, **given: int) -> PrefillConfig:
    """Tiles of 128 by 128, or of fewer tokens by 64, where the sizes divide by that; else by their power of two.

    Three stages of a trip's operands fit an A100's shared memory where a trip has up to 64 columns.
    """
    form = shape.form
    tokens = math.gcd(shape.tokens, 128)
    rows = math.gcd(shape.rows, 128 if tokens == 128 else 64)
    warps = 8 if rows * tokens >= 128 * 128 else 4
    stages = 3 if form.fields * form.group <= 64 else 2
    chosen = {"tokens": tokens, "rows": rows, "warps": warps, "stages": stages, "groups": form.fields}
    return PrefillConfig(**{**chosen, **given})


def prefill_problem(shape: MatmulShape, config: PrefillConfig) -> str:
    """Why a configuration does not fit; empty where it does."""
    for name, size, whole in (("tokens", config.tokens, shape.tokens), ("rows", config.rows, shape.rows)):
        if not _power_of_two(size) or size < _MMA_ROWS or whole % size:
            return f"{name} must be a power of two from {_MMA_ROWS} on that divides {whole}, got {size}"
    if not _power_of_two(config.warps) or config.warps * _MMA_ROWS * 8 > config.rows * config.tokens:
        return f"warps must be a power of two with {_MMA_ROWS} x 8 results each at least, got {config.warps}"
    if config.groups % shape.form.fields or (shape.form.supers and config.groups % 4):
        return f"groups must be a multiple of {shape.form.fields} for {shape.kind}, got {config.groups}"
    return ""


def int8_heuristic(shape: MatmulShape, **given: int) -> PrefillConfig:
    """Tiles of 128 tokens by 64 rows where the sizes divide by that, else by their power of two.

    Formats of five bits take eight groups in a trip, whose sums fill the registers: 64 tokens then, and two stages.
    """
    few = shape.form.fields * shape.form.group <= 64
    tokens, rows = math.gcd(shape.tokens, 128 if few else 64), math.gcd(shape.rows, 64)
    chosen = {"tokens": tokens, "rows": rows, "warps": 4, "stages": 3 if few else 2, "groups": shape.form.fields}
    return PrefillConfig(**{**chosen, **given})


def _power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuConfig:
    """A step's block: `tokens` of activations, `rows` and `columns` of the weight."""

    tokens: int
    rows: int
    columns: int


# Codes of a block whose decoded values stay within the vector memory that a kernel is given.
_TPU_BLOCK = 2**19
_TPU_DECODE_COLUMNS = 2048
_LANES = 128


def tpu_decode_heuristic(shape: MatmulShape, **given: int) -> TpuConfig:
    """Up to 2,048 columns and 512 rows at a time: codes take two bytes each in vector memory, and no more."""
    block = _block_of_columns(shape.columns, (256, 512, 1024, _TPU_DECODE_COLUMNS))
    rows = _block_of_rows(shape.rows, block, 2 * _TPU_BLOCK)
    return TpuConfig(**{"tokens": shape.tokens, "rows": rows, "columns": block, **given})


def tpu_heuristic(shape: MatmulShape, **given: int) -> TpuConfig:
    """Up to 1,024 columns and 512 rows at a time; columns that no multiple of 256 divides stay whole."""
    # Blocks of 768 would have scales that begin inside a register and end in the next.
    block = _block_of_columns(shape.columns, (256, 512, WHOLE_COLUMNS))
    rows = _block_of_rows(shape.rows, block, _TPU_BLOCK)
    tokens = next((n for n in range(256, 7, -8) if shape.tokens % n == 0), shape.tokens)
    return TpuConfig(**{"tokens": tokens, "rows": rows, "columns": block, **given})


def _block_of_columns(columns: int, sizes: tuple[int, ...]) -> int:
    divisors = [n for n in sizes if columns % n == 0]
    return columns if columns <= WHOLE_COLUMNS or not divisors else divisors[-1]


def _block_of_rows(rows: int, columns: int, codes: int) -> int:
    return next((n for n in (512, 384, 256) if rows % n == 0 and n * columns <= codes), _LANES)


def tpu_problem(shape: MatmulShape, config: TpuConfig) -> str:
    """Why a configuration does not fit; empty where it does."""
    if config.rows % _LANES or shape.rows % config.rows:
        return f"rows must be a multiple of {_LANES} that divides {shape.rows}, got {config.rows}"
    if shape.tokens % config.tokens or (config.tokens != shape.tokens and config.tokens % 8):
        return f"tokens must be a multiple of 8 that divides {shape.tokens}, or all of them, got {config.tokens}"
    blocks = config.columns == shape.columns or (shape.columns > WHOLE_COLUMNS and _power_of_two(config.columns))
    if not blocks or config.columns < min(256, shape.columns) or shape.columns % config.columns:
        return (
            f"columns must be all {shape.columns}, or of more than {WHOLE_COLUMNS} a power of two from 256 on that "
            f"divides them, got {config.columns}"
        )
    return ""


Config = DecodeConfig | PrefillConfig | TpuConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's `name` in tables, the `heuristic` that makes a configuration, and what finds a `problem` with one."""

    name: str
    heuristic: Callable[..., Any]
    problem: Callable[[MatmulShape, Any], str]


CUDA_DECODE = Kernel(name="quantized_matmul decode", heuristic=decode_heuristic, problem=decode_problem)
CUDA_PREFILL = Kernel(name="quantized_matmul prefill", heuristic=prefill_heuristic, problem=prefill_problem)
CUDA_INT8 = Kernel(name="quantized_matmul int8", heuristic=int8_heuristic, problem=prefill_problem)
TPU_DECODE = Kernel(name="quantized_matmul tpu decode", heuristic=tpu_decode_heuristic, problem=tpu_problem)
TPU_PREFILL = Kernel(name="quantized_matmul tpu prefill", heuristic=tpu_heuristic, problem=tpu_problem)


def kernel_for(shape: MatmulShape, backend: Backend) -> Kernel:
    """The kernel that multiplies a shape."""
    if shape.activations == "int8":
        return CUDA_INT8
    few = shape.tokens <= DECODE_TOKENS
    if backend == "tpu":
        return TPU_DECODE if few and shape.form.exact_on_tpu else TPU_PREFILL
    return CUDA_DECODE if few else CUDA_PREFILL


def config_for(shape: MatmulShape, backend: Backend, given: Any = None) -> Any:
    """The configuration of `kernel_for(shape, backend)`: the given one, a table's, or the heuristic's.

    Raises:
        ValueError: the given one does not fit the shape, or a table is malformed.
    """
    kernel = kernel_for(shape, backend)
    problem = functools.partial(kernel.problem, shape)
    if given is None:
        make = functools.partial(kernel.heuristic, shape)
        return choose(kernel.name, shape.kind, shape.sizes, make, problem)
    if problem(given):
        raise ValueError(f"{kernel.name}: {problem(given)}")
    return given


def loop_codes(shape: MatmulShape, config: Config) -> int | None:
    """Weight codes of a thread in a trip of CUDA's decode kernel, or of a TPU's grid step; None for prefill on CUDA."""
    if isinstance(config, DecodeConfig):
        return config.groups * shape.form.group * config.rows // (32 * config.warps)
    return config.rows * config.columns if isinstance(config, TpuConfig) else None
