"""Scores a task of questions with this library, all in one call, and prints the log-likelihoods and the seconds."""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.questions_task import Task
from benchmarks.worker import answering_stream
from realm_jax import LLM
from realm_jax.cli.versions import version_of


def main() -> None:
    """Load the model, score another task to warm up, then this one, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, required=True, help="how many")
    parser.add_argument("--begin", default="", help="text before everything else")
    options = parser.parse_args()
    answers = answering_stream()
    llm = LLM(options.model, max_model_len=1024, quiet=True)

    def scored(task: Task) -> tuple[float, list[float]]:
        contexts, continuations = zip(*task.requests, strict=True)
        start = time.perf_counter()
        scores = llm.score(contexts, continuations, use_tqdm=False)
        return time.perf_counter() - start, [score.logprob for score in scores]

    # Another task compiles the same programs and leaves nothing in the cache that this one begins with.
    scored(Task.drawn(options.questions, seed=1, begin=options.begin))
    seconds, logprobs = scored(Task.drawn(options.questions, begin=options.begin))
    json.dump({"seconds": seconds, "logprobs": logprobs, "version": version_of("realm-jax")}, answers)


if __name__ == "__main__":
    main()
