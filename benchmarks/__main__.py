"""Runs every benchmark on every model; writes one JSON file and the tables of docs/performance.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import null_step, report, speed, startup
from benchmarks.environment import describe, environment
from realm_jax.cli.threads import limit_threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One benchmark: its name in the JSON file, its heading, what measures a model, and what draws the tables."""

    name: str
    title: str
    measure: Callable[[Path], Any]
    tables: Callable[[Sequence[Any]], str]


def parts(*, quick: bool, peer: str | None) -> list[Part]:
    """All benchmarks; `quick` runs each once or twice, which shows that it works and nothing else."""
    repetitions, steps, rounds = (1, 20, 1) if quick else (5, 200, 3)
    return [
        Part(
            name="null_step",
            title="Null step",
            measure=lambda path: null_step.measure(path, steps=steps),
            tables=null_step.tables,
        ),
        Part(
            name="startup",
            title="From file to first token",
            measure=lambda path: startup.measure(path, repetitions=repetitions, reader=not quick),
            tables=startup.tables,
        ),
        Part(
            name="speed",
            title="Prefill and decode",
            measure=lambda path: speed.measure(path, rounds=rounds, runs=1 if quick else 2, peer=peer),
            tables=speed.tables,
        ),
    ]


def main() -> None:
    """Measure part by part, writing bench.json and bench.md anew after each."""
    parser = report.peer_parser("Every benchmark, into one JSON file and one page of tables.")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for bench.json and bench.md")
    parser.add_argument("--quick", action="store_true", help="as few runs as possible")
    options = parser.parse_args()
    speed.check_peer(options.peer)
    limit_threads(options.threads)
    paths = report.locate(options.models)
    results: dict[str, Any] = {"environment": environment()}
    sections = [describe(results["environment"])]
    for part in parts(quick=options.quick, peer=options.peer):
        results[part.name] = [part.measure(path) for path in paths]
        sections.append(f"## {part.title}\n\n{part.tables(results[part.name])}")
        if not options.json:
            print("\n\n".join(sections[-2:] if len(sections) == 2 else sections[-1:]), end="\n\n", flush=True)
        _write(options.output, results, sections)
    if options.json:
        print(report.as_json(results))


def _write(folder: Path, results: dict[str, Any], sections: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(report.as_json(results) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
