"""How results leave the benchmarks: Markdown tables to paste, JSON for machines, and the options that all share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, environment
from benchmarks.samples import Samples

MODELS = ("smollm2", "gemma3-270m")


def parser(description: str, *, models: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes, and the models to measure unless there are none."""
    made = argparse.ArgumentParser(description=description)
    if models:
        made.add_argument("models", nargs="*", default=list(MODELS), help="paths of .gguf files or catalogue names")
    made.add_argument("--json", action="store_true", help="print JSON instead of tables")
    made.add_argument("--threads", type=int, help="CPUs to compute on (default: all)")
    return made


def add_implementations(to: argparse.ArgumentParser) -> None:
    """Add the choice of this library's implementations; `usable_implementations` are meant where there is none."""
    to.add_argument("--implementations", type=_listed, metavar="NAME,NAME", help="(default: the fastest, and xla)")


def usable_implementations() -> tuple[str, ...]:
    """The fastest implementation and the reference, once each. Starts JAX."""
    from realm_jax.ops import fastest_implementation

    return tuple(dict.fromkeys((fastest_implementation(), "xla")))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def peer_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of benchmarks that run the peer too; `peer` is its interpreter, or None."""
    made = parser(description)
    made.add_argument(
        "--peer", default=sys.executable, metavar="PYTHON", help="interpreter that has llama-cpp-python (default: this)"
    )
    made.add_argument("--no-peer", dest="peer", action="store_const", const=None, help="measure this library alone")
    return made


def run(
    options: argparse.Namespace, measure: Callable[[Path], Sequence[Any]], tables: Callable[[Sequence[Any]], str]
) -> None:
    """Measure each model and print the results: see `run_once`."""
    run_once(options, lambda: [result for path in locate(options.models) for result in measure(path)], tables)


def run_once(
    options: argparse.Namespace, measure: Callable[[], Sequence[Any]], tables: Callable[[Sequence[Any]], str]
) -> None:
    """Measure and print the results, with the machine that they hold for.

    Binds the process and its children to `options.threads` CPUs first.
    """
    from realm_jax.cli.threads import limit_threads

    limit_threads(options.threads)
    facts = environment()
    results = measure()
    if options.json:
        print(as_json({"environment": facts, "results": results}))
    else:
        print(f"{describe(facts)}\n\n{tables(results)}")


def locate(models: Sequence[str]) -> list[Path]:
    """The files that models name; those of the catalogue are downloaded on first use."""
    from realm_jax.sources import resolve

    return [resolve(model) for model in models]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A number that a table shows with two decimals, or as nothing where there is none."""

    value: float | None

    def __str__(self) -> str:
        return "" if self.value is None else f"{self.value:.2f}"


def as_json(value: Any) -> str:
    """Results as a JSON document."""
    return json.dumps(value, indent=2, default=_plain)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its cells padded so that it reads well as plain text too; numbers stand to the right."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [all(isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    rule = [("-" * width if word else "-" * (width - 1) + ":") for width, word in zip(widths, words, strict=True)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(c.ljust(w) if word else c.rjust(w) for c, w, word in zip(line, widths, words, strict=True))
        + " |"
        for line in lines
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Samples):
        return value.as_json()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"results must be plain values, samples or paths, got {type(value).__name__}")
