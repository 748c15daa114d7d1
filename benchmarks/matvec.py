"""How near the product of one row with a weight of each format comes to the speed of reading the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cpu_kernels
from benchmarks import report
from benchmarks.samples import Samples, timed
from realm_jax.cli.threads import available_cpus
from realm_jax.gguf import GGMLType
from realm_jax.quant.layouts import LAYOUTS

COLUMNS = 4096
BYTES = 2**27
"""Of tiles, so that no cache holds a weight from one product to the next."""

_WARM_UP = 2


def measure(*, formats: Sequence[str] | None = None, size: int = BYTES, repetitions: int = 15) -> dict[str, Any]:
    """GB/s of tile bytes that one-row products read, and of file bytes that packing reads; `size` bytes of tiles each.

    Reading as many other bytes and doing nothing with them takes turns with the products: it empties the caches, and
    the bandwidth of a shared machine drifts.
    """
    names = tuple(cpu_kernels.FORMATS) if formats is None else formats
    threads = available_cpus()
    shares = np.array_split(np.ones(size // 8, np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:

        def read() -> None:
            list(pool.map(cpu_kernels.read_memory, shares))

        cases = {name: _measure_format(GGMLType[name], size, repetitions, read) for name in names}
    return {
        "columns": COLUMNS,
        "bytes": size,
        "threads": threads,
        "instruction_set": cpu_kernels.best_instruction_set().name,
        "warm_up": _WARM_UP,
        "formats": cases,
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """GB/s of each format as Markdown: median (p10-p90)."""
    columns = ("format", "bits a weight", "read alone GB/s", "product GB/s", "of it %", "G weights/s", "packing GB/s")
    rows = [
        (
            name,
            report.Fixed(case["bits"]),
            case["read"],
            case["product"],
            case["share"],
            report.Fixed(case["product"].median * 8 / case["bits"]),
            report.Fixed(case["pack"].median),
        )
        for result in results
        for name, case in result["formats"].items()
    ]
    facts = [f"One row of {r['columns']}, {r['threads']} threads, {r['instruction_set']}." for r in results]
    return "\n\n".join([*facts, report.table(columns, rows)])


def _measure_format(kind: GGMLType, size: int, repetitions: int, read: Callable[[], None]) -> dict[str, Any]:
    bits = cpu_kernels.tiled_shape(kind.name, (16, COLUMNS))[1] * 8 / (16 * COLUMNS)
    shape = (max(1, round(8 * size / (bits * COLUMNS * 16))) * 16, COLUMNS)
    # Bytes of which no scale, half or single, is huge, subnormal or NaN.
    bytes_ = shape[0] * COLUMNS // kind.block_size * kind.type_size
    blocks = np.random.default_rng(0).integers(0x20, 0x40, bytes_, dtype=np.uint8)
    tiles = np.zeros(0, np.uint8)

    def pack() -> None:
        nonlocal tiles
        tiles = LAYOUTS["cpu"].pack(blocks, kind, shape, None)

    packing = timed(pack, 1)
    placed = jax.device_put(tiles)  # as it is; a copy of XLA's would lie in small pages
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, COLUMNS)), jnp.float32)
    product = jax.jit(lambda x, tiles: cpu_kernels.quantized_matmul(x, tiles, kind.name, shape))
    reading: list[float] = []
    multiplying: list[float] = []
    for i in range(repetitions):
        warm_up = 0 if i else _WARM_UP
        reading += timed(read, 1, warm_up=warm_up)
        multiplying += timed(lambda: product(x, placed).block_until_ready(), 1, warm_up=warm_up)
    # Of neighbours in time: both drift alike.
    ratio = 100 * tiles.nbytes / (size // 8 * 8)
    shares = tuple(ratio * alone / product for alone, product in zip(reading, multiplying, strict=True))
    return {
        "rows": shape[0],
        "bits": bits,
        "read": _speeds(size // 8 * 8, reading),
        "product": _speeds(tiles.nbytes, multiplying),
        "share": Samples(unit="%", values=shares),
        "pack": _speeds(blocks.nbytes, packing),
    }


def _speeds(size: int, seconds: Sequence[float]) -> Samples:
    return Samples(unit="GB/s", values=tuple(size / s / 1e9 for s in seconds))


def main() -> None:
    """Print the speed of each format."""
    parser = report.parser("One-row products with weights of every format, beside reading them.", models=False)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help="ggml's names (default: all)")
    parser.add_argument("--repetitions", type=int, default=15, help="timed products of each format")
    options = parser.parse_args()
    report.run_once(
        options, lambda: [measure(formats=options.formats or None, repetitions=options.repetitions)], tables
    )


if __name__ == "__main__":
    main()
