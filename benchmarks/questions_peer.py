"""Scores a task of questions with llama.cpp, one request after another, and prints log-likelihoods and seconds.

Driven without a server: texts become tokens, what a request shares with the one before it stays in the KV cache, and
logits are made for the answer's tokens alone. No server that takes one request at a time does less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports] - installed by `make bench` alone
import numpy as np

from benchmarks.llama_cpp_worker import Context, load
from benchmarks.questions_program import Assignment, answer
from realm_jax.cli.threads import available_cpus

_LENGTH = 1024


class Scorer:
    """A context of one sequence, and the tokens that it holds."""

    def __init__(self, model: Any) -> None:
        self._context = Context(model, sequences=1, length=_LENGTH, threads=available_cpus())
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._held: list[int] = []

    def logprob(self, context: str, continuation: str) -> float:
        """The log-probability of a continuation, whose tokens are those of the whole text beyond the context's."""
        ids, before = self._tokens(context + continuation), len(self._tokens(context))
        start = min(_common(self._held, ids), before - 1)
        self._context.clear_sequence(0, start)
        step = self._context.batch_size
        total, last = 0.0, len(ids) - 1  # the last token is predicted, and predicts nothing
        for at in range(start, last, step):
            positions = range(at, min(at + step, last))
            rows = [(0, position, position >= before - 1) for position in positions]
            self._context.compute(rows, ids[at : positions.stop])
            for row, (_, position, wanted) in enumerate(rows):
                if wanted:
                    total += _logprob(self._context.logits(row), ids[position + 1])
        self._held = ids[:last]
        return total

    def _tokens(self, text: str) -> list[int]:
        data = text.encode()
        most = len(data) + 2
        ids = (llama_cpp.llama_token * most)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, most, True, True)
        return ids[:count]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin alike with."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(one), len(other)))


def _logprob(logits: np.ndarray, token: int) -> float:
    wide = logits.astype(np.float64)
    most = wide.max()
    return float(wide[token] - most - np.log(np.exp(wide - most).sum()))


def main() -> None:
    """Load the model, score a few requests of another task to warm up, then the task, and print JSON."""
    given = Assignment.parse(__doc__)
    scorer = Scorer(load(str(given.model)))
    for request in given.task(seed=1).requests[:4]:
        scorer.logprob(*request)
    requests = given.task().requests[: given.requests]
    start = time.perf_counter()
    logprobs = [scorer.logprob(*request) for request in requests]
    seconds = time.perf_counter() - start
    answer(sys.stdout, seconds=seconds, logprobs=logprobs, version=llama_cpp.__version__)


if __name__ == "__main__":
    main()
