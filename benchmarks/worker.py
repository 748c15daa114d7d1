"""Models that stay loaded in processes of their own, so that runs of different programs can take turns.

A worker is a module to run: it says a line of facts about itself, then answers requests, one JSON object a line on
stdin and stdout. A request is a `Case`'s fields and a `count` of runs; its answer is {"tokens_per_second": [...]}, or
{"error": "..."}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from benchmarks.environment import ROOT
from realm_jax.cli.bench_measure import Case

Speeds = Callable[[Case, int], Sequence[float]]
"""Runs a case once to warm up and then a number of times; tokens a second of each, all sequences together."""


class WorkerError(RuntimeError):
    """A worker cannot run a case and stays ready for others; the message is its own."""


class Worker:
    """The asking side: starts a worker and is a context manager that ends it."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], *, python: str = sys.executable) -> None:
        """Start `python -m module arguments` and wait until its model is loaded."""
        self.name = name
        command = [python, "-m", module, *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def speeds(self, case: Case, count: int) -> list[float]:
        """Tokens a second of `count` runs, after one that is not timed.

        WorkerError where the program cannot run the case, RuntimeError where it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**dataclasses.asdict(case), "count": count}) + "\n")
        self._process.stdin.flush()
        return list(self._answer()["tokens_per_second"])

    def close(self) -> int:
        """Let the worker end, wait for it and return its exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.close()}; stderr has its message")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer


def answering_stream() -> TextIO:
    """The stream to answer on; what libraries print to stdout goes to stderr from here on."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return stream


def serve(answers: TextIO, facts: Mapping[str, Any], speeds: Speeds) -> None:
    """The worker's side: answer requests until stdin ends."""
    _say(answers, facts)
    for line in sys.stdin:
        request = json.loads(line)
        count = request.pop("count")
        try:
            _say(answers, {"tokens_per_second": list(speeds(Case(**request), count))})
        except (ValueError, RuntimeError) as error:
            _say(answers, {"error": str(error)})


def _say(answers: TextIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
