"""Runs every benchmark on every model; writes one JSON file and the tables of docs/performance.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cpu_kernels
from benchmarks import matvec, null_step, report, speed, startup
from benchmarks.environment import describe, environment
from realm_jax.cli.threads import limit_threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One benchmark: its name in the JSON file, its heading, what measures models, and what draws its tables."""

    name: str
    title: str
    measure: Callable[[Sequence[Path]], Sequence[Any]]
    tables: Callable[[Sequence[Any]], str]


def parts(*, quick: bool, implementations: Sequence[str], peer: str | None) -> list[Part]:
    """All benchmarks; `quick` runs each once or twice, which shows that it works and nothing else."""
    repetitions, steps, rounds, runs = (1, 20, 1, 1) if quick else (5, 200, 3, 2)
    batches = (1, 16)

    def starts(path: Path) -> Sequence[Any]:
        return startup.measure_each(path, implementations, reader=not quick, repetitions=repetitions)

    def speeds(path: Path) -> Sequence[Any]:
        settings = {"rounds": rounds, "runs": runs, "peer": peer}
        return [speed.measure(path, implementations=implementations, **settings)]

    def null_steps(path: Path) -> Sequence[Any]:
        return [null_step.measure(path, batch=batch, steps=steps) for batch in batches]

    def matvecs(_: Sequence[Path]) -> Sequence[Any]:
        if not cpu_kernels.is_available():
            return []
        return [matvec.measure(size=2**20, repetitions=2)] if quick else [matvec.measure()]

    return [
        Part(name="matvec", title="Products with one row", measure=matvecs, tables=matvec.tables),
        Part(name="null_step", title="Null step", measure=_each(null_steps), tables=null_step.tables),
        Part(name="startup", title="From file to first token", measure=_each(starts), tables=startup.tables),
        Part(name="speed", title="Prefill and decode", measure=_each(speeds), tables=speed.tables),
    ]


def _each(measure: Callable[[Path], Sequence[Any]]) -> Callable[[Sequence[Path]], Sequence[Any]]:
    return lambda paths: [result for path in paths for result in measure(path)]


def main() -> None:
    """Measure part by part, writing bench.json and bench.md anew after each."""
    parser = report.peer_parser("Every benchmark, into one JSON file and one page of tables.")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for bench.json and bench.md")
    parser.add_argument("--quick", action="store_true", help="as few runs as possible")
    report.add_implementations(parser)
    options = parser.parse_args()
    speed.check_peer(options.peer)
    limit_threads(options.threads)
    paths = report.locate(options.models)
    results: dict[str, Any] = {"environment": environment()}
    sections = [describe(results["environment"])]
    implementations = options.implementations or report.usable_implementations()
    for part in parts(quick=options.quick, implementations=implementations, peer=options.peer):
        results[part.name] = part.measure(paths)
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
