"""Scores a task of questions with this library, all in one call, and prints the log-likelihoods and the seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.questions_program import Assignment, answer
from benchmarks.worker import answering_stream
from realm_jax import LLM
from realm_jax.cli.versions import version_of


def main() -> None:
    """Load the model, score another task to warm up, then this one, and print JSON."""
    given = Assignment.parse(__doc__)
    answers = answering_stream()
    llm = LLM(given.model, max_model_len=1024, quiet=True)

    def scored(requests: Sequence[tuple[str, str]]) -> tuple[float, list[float]]:
        contexts, continuations = zip(*requests, strict=True)
        start = time.perf_counter()
        scores = llm.score(contexts, continuations, use_tqdm=False)
        return time.perf_counter() - start, [score.logprob for score in scores]

    # Another task compiles the same programs and leaves nothing in the cache that this one begins with.
    scored(given.task(seed=1).requests[: given.requests])
    seconds, logprobs = scored(given.task().requests[: given.requests])
    answer(answers, seconds=seconds, logprobs=logprobs, version=version_of("realm-jax"))


if __name__ == "__main__":
    main()
