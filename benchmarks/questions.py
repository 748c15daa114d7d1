"""A multiple-choice task with a shared beginning: in one call, beside llama.cpp request by request."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.environment import ROOT
from benchmarks.questions_program import Assignment
from benchmarks.questions_task import Task
from benchmarks.speed import check_peer

OURS, PEER, SERVER = "realm", "llama.cpp, one by one", "llama-cpp-python's server, one by one"


def measure(
    path: Path, *, count: int = 200, rounds: int, peer: str | None, server_requests: int, begin: str = ""
) -> list[dict[str, Any]]:
    """Seconds and log-likelihoods of `count` questions by each program, a process a run, `rounds` times in turns.

    The server is sent the first `server_requests` of the task alone: it takes seconds for each.
    """
    all_of_it = Assignment(model=path, questions=count, begin=begin)
    programs = {OURS: [sys.executable, "-m", "benchmarks.questions_worker", *all_of_it.words]}
    if peer is not None:
        programs[PEER] = [peer, "-m", "benchmarks.questions_peer", *all_of_it.words]
    if peer is not None and server_requests:
        first = dataclasses.replace(all_of_it, requests=server_requests)
        programs[SERVER] = [peer, "-m", "benchmarks.questions_server", *first.words]
    runs: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    for _ in range(rounds):
        for program, command in programs.items():
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            runs[program].append(json.loads(done.stdout))
    task = all_of_it.task()
    reference = runs[OURS][0]["logprobs"]
    return [{"model": path.name, "program": program} | _result(task, done, reference) for program, done in runs.items()]


def _result(task: Task, runs: Sequence[Mapping[str, Any]], reference: Sequence[float]) -> dict[str, Any]:
    logprobs = runs[0]["logprobs"]
    differences = [abs(one - other) for one, other in zip(logprobs, reference, strict=False)]
    return {
        "version": runs[0]["version"],
        "requests": len(logprobs),
        "seconds": [run["seconds"] for run in runs],
        "milliseconds_a_request": statistics.median(run["seconds"] for run in runs) / len(logprobs) * 1000,
        "accuracy": task.accuracy(logprobs) if len(logprobs) == len(reference) else None,
        "mean_abs_difference": statistics.mean(differences),
        "largest_abs_difference": max(differences),
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Seconds, their share of a request, the task's accuracy, and differences from ours in nats, as Markdown."""
    header = ("model", "program", "requests", "seconds", "ms a request", "accuracy", "mean |difference|", "largest")
    rows = [
        (
            result["model"],
            result["program"],
            result["requests"],
            f"{statistics.median(result['seconds']):.2f} ({min(result['seconds']):.2f}-{max(result['seconds']):.2f})",
            report.Fixed(result["milliseconds_a_request"]),
            "" if result["accuracy"] is None else f"{result['accuracy']:.1%}",
            f"{result['mean_abs_difference']:.3f}",
            f"{result['largest_abs_difference']:.3f}",
        )
        for result in results
    ]
    return report.table(header, rows)


def main() -> None:
    """Print time and answers of each program, beside the peer unless that is left out."""
    parser = report.peer_parser("200 questions with four answers and a shared beginning, in turns with llama.cpp.")
    parser.add_argument("--questions", dest="count", type=int, default=200, help="how many questions")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each program")
    parser.add_argument("--server-requests", type=int, default=4, help="how many llama-cpp-python's server is sent")
    parser.add_argument("--begin", default="", help="what every request begins with")
    options = parser.parse_args()
    check_peer(options.peer)
    settings = {name: getattr(options, name) for name in ("count", "rounds", "peer", "server_requests", "begin")}
    report.run(options, lambda path: measure(path, **settings), tables)


if __name__ == "__main__":
    main()
