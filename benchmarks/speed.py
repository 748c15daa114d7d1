"""Prefill and decode speed beside llama.cpp: both models stay loaded and the runs take turns."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.environment import ROOT
from benchmarks.samples import Samples
from benchmarks.worker import Worker, WorkerError
from realm_jax.cli.bench_measure import Case

CASES = (
    Case(kind="pp", tokens=512, depth=0, batch=1),
    Case(kind="tg", tokens=64, depth=0, batch=1),
    Case(kind="pp", tokens=512, depth=2048, batch=1),
    Case(kind="tg", tokens=64, depth=2048, batch=1),
    Case(kind="tg", tokens=64, depth=128, batch=4),
    Case(kind="tg", tokens=64, depth=128, batch=16),
)

PEER = "llama.cpp"
_REFERENCE = "xla"
_SETTLE_SECONDS = 0.2  # until the threads of the program that ran last have gone to sleep


def measure(
    path: Path,
    *,
    cases: Sequence[Case] = CASES,
    rounds: int = 3,
    runs: int = 2,
    implementations: Sequence[str] = ("xla",),
    peer: str | None = sys.executable,
) -> dict[str, Any]:
    """Tokens a second of each case: `rounds` turns of each program, each an untimed run and `runs` timed ones.

    This library is a program for each of its `implementations`; `peer` is the interpreter that has llama-cpp-python,
    None leaves the peer out. The reference, `xla`, is many times slower than the others: beside them it takes one turn
    of the cases of one sequence without depth.
    """
    slow = f"realm {_REFERENCE}" if len(implementations) > 1 else None
    limits = ["--max-length", str(max(case.length for case in cases))]
    limits += ["--max-batch", str(max(case.batch for case in cases))]
    with contextlib.ExitStack() as stack:
        workers = []
        for name in implementations:
            words = [str(path.resolve()), "--implementation", name, *limits]
            workers.append(stack.enter_context(Worker(f"realm {name}", "benchmarks.realm_worker", words)))
        if peer is not None:
            there = Worker(PEER, "benchmarks.llama_cpp_worker", [str(path.resolve())], python=peer)
            workers.append(stack.enter_context(there))
        return {
            "model": path.name,
            "rounds": rounds,
            "runs": runs,
            "programs": {worker.name: dict(worker.facts) for worker in workers},
            "cases": [_in_turns(workers, case, rounds, runs, slow) for case in cases],
        }


def check_peer(python: str | None) -> None:
    """ValueError if an interpreter lacks llama-cpp-python; None is always right."""
    if python is None:
        return
    done = subprocess.run([python, "-c", "import llama_cpp"], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise ValueError(f"{python} must have llama-cpp-python; run `make bench`, or measure without it: --no-peer")


def _in_turns(workers: Sequence[Worker], case: Case, rounds: int, runs: int, slow: str | None) -> dict[str, Any]:
    values: dict[str, list[float]] = {worker.name: [] for worker in workers}
    errors: dict[str, str] = {}
    for turn in range(rounds):
        for worker in workers:
            if worker.name in errors or (worker.name == slow and (turn or case.depth or case.batch > 1)):
                continue
            time.sleep(_SETTLE_SECONDS)
            try:
                values[worker.name] += worker.speeds(case, runs)
            except WorkerError as error:
                errors[worker.name] = str(error)
    speeds = {name: Samples(unit="tokens/s", values=tuple(v)) for name, v in values.items() if v}
    beside = speeds[PEER].median if PEER in speeds else None
    ratios = {} if beside is None else {name: s.median / beside for name, s in speeds.items() if name != PEER}
    shape = {"test": case.test, "depth": case.depth, "batch": case.batch}
    return {**shape, "tokens_per_second": speeds, "ratios": ratios, "errors": errors}


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second, median (p10-p90), and the ratios of the medians to the peer's as Markdown."""
    names = list(dict.fromkeys(name for result in results for name in result["programs"]))
    compared = [name for name in names if name != PEER and PEER in names]
    speeds, ratios = [f"{name}, tokens/s" for name in names], [f"{name} / {PEER}" for name in compared]
    rows = [
        (
            result["model"],
            *(case[field] for field in ("test", "depth", "batch")),
            *(case["tokens_per_second"].get(name, "failed" if name in case["errors"] else "-") for name in names),
            *(report.Fixed(case["ratios"].get(name)) for name in compared),
        )
        for result in results
        for case in result["cases"]
    ]
    facts = {name: result["programs"][name] for result in results for name in result["programs"]}
    lines = [f"{name}: {', '.join(f'{k} {v}' for k, v in about.items())}" for name, about in facts.items()]
    return "\n".join([report.table(("model", "test", "depth", "batch", *speeds, *ratios), rows), "", *lines])


def main() -> None:
    """Print the speed of each model, beside the peer unless that is left out."""
    parser = report.peer_parser("Prefill and decode speed beside llama.cpp, in turns.")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program")
    parser.add_argument("--runs", type=int, default=2, help="timed runs of a turn")
    report.add_implementations(parser)
    options = parser.parse_args()
    check_peer(options.peer)
    settings = {name: getattr(options, name) for name in ("rounds", "runs", "peer")}

    def speeds(path: Path) -> list[Any]:
        names = options.implementations or report.usable_implementations()
        return [measure(path, implementations=names, **settings)]

    report.run(options, speeds, tables)


if __name__ == "__main__":
    main()
