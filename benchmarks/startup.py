"""From nothing to the first token: opening a file, importing, loading, the first token, and the memory it takes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import processes, report
from benchmarks.environment import REALM
from benchmarks.samples import Samples, timed
from realm_jax import gguf

FIRST_TOKEN_LIMITS = {"empty": 20.0, "warm": 4.0}
"""Seconds from process start to the first token on two cores, by the state of the compilation cache."""

# What would take a run away from the cache folder that it is given.
_OVERRIDES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "REALM_CACHE_DIR")


def measure(path: Path, *, implementation: str = "xla", repetitions: int = 5, reader: bool = True) -> dict[str, Any]:
    """Seconds and bytes of starting with one model; the file is read once before, so that it is in memory.

    `reader` compares opening with the `gguf` package's GGUFReader, which takes seconds, once.
    """
    path.read_bytes()
    return {
        "model": path.name,
        "implementation": implementation,
        "repetitions": repetitions,
        "open": _samples(timed(lambda: gguf.open(path).close(), repetitions, warm_up=1)),
        "open_gguf_reader": _reader_seconds(path) if reader else None,
        **_loading(path, implementation, repetitions),
        "first_token": _first_token(path, implementation, repetitions),
        "first_token_limits": FIRST_TOKEN_LIMITS,
    }


def measure_each(path: Path, implementations: Sequence[str], *, reader: bool = True, **settings: Any) -> list[Any]:
    """`measure` for each implementation; GGUFReader, which has none, only once."""
    names = enumerate(implementations)
    return [measure(path, implementation=name, reader=reader and i == 0, **settings) for i, name in names]


def _reader_seconds(path: Path) -> float | None:
    if importlib.util.find_spec("gguf") is None:
        return None
    package: Any = importlib.import_module("gguf")
    return timed(lambda: package.GGUFReader(path), 1)[0]


def _loading(path: Path, implementation: str, repetitions: int) -> dict[str, Any]:
    """Seconds and bytes of importing and loading, each time in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.startup_probe", str(path.resolve()), implementation]
    runs = [processes.run(command) for _ in range(repetitions)]
    reports = [json.loads(run.output) for run in runs]
    return {
        **{name: _samples(r["seconds"][name] for r in reports) for name in reports[0]["seconds"]},
        "process_to_loaded": _samples(run.first_output for run in runs),
        "bytes": {**reports[0]["bytes"], "peak_loaded": _most(runs)},
    }


def _first_token(path: Path, implementation: str, repetitions: int) -> dict[str, Any]:
    """Seconds to the first token of `realm generate MODEL --prompt hi -n 1`, and its peak memory in bytes."""
    kept = {name: value for name, value in os.environ.items() if name not in _OVERRIDES}
    with tempfile.TemporaryDirectory() as cache:
        words = ["generate", str(path.resolve()), "--prompt", "hi", "-n", "1"]
        words += ["--implementation", implementation, "--cache-dir", cache]
        empty, *warm = [processes.run([*REALM, *words], environment=kept) for _ in range(1 + repetitions)]
    return {
        "empty": _samples([empty.first_output]),
        "warm": _samples(run.first_output for run in warm),
        "peak_empty": _most([empty]),
        "peak_warm": _most(warm),
    }


def _most(runs: Sequence[processes.Finished]) -> int | None:
    peaks = [run.peak_resident for run in runs]
    return max((peak for peak in peaks if peak is not None), default=None)


def _samples(values: Iterable[float]) -> Samples:
    return Samples(unit="s", values=tuple(values))


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Seconds, median (p10-p90), and bytes as Markdown."""
    seconds = [(r["model"], r["implementation"], what, value) for r in results for what, value in _seconds_of(r)]
    peaks = ("peak, loaded", "peak, first token", "peak, first token, empty cache")
    columns = ("tensors in the file", "held", "ratio", "KV cache", *peaks)
    sizes = [(r["model"], r["implementation"], *_bytes_of(r)) for r in results]
    first = ("model", "implementation")
    return f"{report.table((*first, 'what', 'seconds'), seconds)}\n\n{report.table((*first, *columns), sizes)}"


def _seconds_of(result: Mapping[str, Any]) -> list[tuple[str, object]]:
    reader, first = result["open_gguf_reader"], result["first_token"]
    rows = [
        ("opening the file", result["open"]),
        ("opening it with gguf.GGUFReader", None if reader is None else _samples([reader])),
        ("importing jax and flax", result["import_jax"]),
        ("importing realm_jax after them", result["import_realm"]),
        ("loading, without imports", result["load"]),
        ("loading, from process start", result["process_to_loaded"]),
        ("first token from process start, empty compilation cache", first["empty"]),
        ("first token from process start, warm compilation cache", first["warm"]),
    ]
    return [(what, value) for what, value in rows if value is not None]


def _bytes_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    sizes, first = result["bytes"], result["first_token"]
    held, stored = sizes["held"], sizes["tensors"]
    others = (sizes["cache"], sizes["peak_loaded"], first["peak_warm"], first["peak_empty"])
    return (_megabytes(stored), _megabytes(held), f"{held / stored:.3f}", *map(_megabytes, others))


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.1f} MB"


def main() -> None:
    """Print what starting takes with each model."""
    parser = report.parser("The time from process start to the first token, step by step, and the memory it takes.")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each kind")
    parser.add_argument("--no-reader", action="store_true", help="leave out gguf.GGUFReader, which takes seconds")
    report.add_implementations(parser)
    options = parser.parse_args()
    settings = {"repetitions": options.repetitions, "reader": not options.no_reader}

    def starts(path: Path) -> list[Any]:
        return measure_each(path, options.implementations or report.usable_implementations(), **settings)

    report.run(options, starts, tables)


if __name__ == "__main__":
    main()
