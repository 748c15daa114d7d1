"""What the programs that score a task of questions share: the arguments they are called with, and what they answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from benchmarks.questions_task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """The model to score with, how many questions, the text that all of them begin with, and how many to send.

    `requests` None: all of the task's.
    """

    model: Path
    questions: int
    begin: str = ""
    requests: int | None = None

    @classmethod
    def parse(cls, description: str | None, words: Sequence[str] | None = None) -> Self:
        """The assignment that the process's arguments, or `words`, name."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("model", type=Path)
        parser.add_argument("--questions", type=int, required=True, help="how many")
        parser.add_argument("--begin", default="", help="text before everything else")
        parser.add_argument("--requests", type=int, help="how many of the task's to send (default: all)")
        return cls(**vars(parser.parse_args(words)))

    @property
    def words(self) -> list[str]:
        """The arguments that name this assignment."""
        words = [str(self.model), "--questions", str(self.questions), f"--begin={self.begin}"]
        return words if self.requests is None else [*words, "--requests", str(self.requests)]

    def task(self, seed: int = 0) -> Task:
        """The task to score; with another seed one of the same kind, to warm up with."""
        return Task.drawn(self.questions, seed=seed, begin=self.begin)


def answer(to: TextIO, *, seconds: float, logprobs: Sequence[float], version: str) -> None:
    """Print the log-likelihoods of the requests in their order, and the time they took, as JSON."""
    message: dict[str, Any] = {"seconds": seconds, "logprobs": list(logprobs), "version": version}
    json.dump(message, to)
