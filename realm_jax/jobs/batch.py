"""Batch: every request of a file answered once in another, however often the process is killed and run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from realm_jax.jobs.answering import Answerer
from realm_jax.jobs.ledger import JobSummary, Ledger
from realm_jax.llm import LLM


def run_batch(
    llm: LLM, source: Path, target: Path, *, seed: int = 0, progress: Callable[[JobSummary], object] = lambda _: None
) -> JobSummary:
    """Answer what is not answered yet. Answers come in the order in which they are ready.

    `source` has OpenAI's batch lines, for /v1/chat/completions and /v1/completions; a line that is none, or whose
    custom_id an earlier one has, is answered with an error. `target` has the answers: it only grows, each line in one
    piece, and an interrupted job goes on with it. `seed`: see `bodies.request_of`. `progress` is told after each step.
    """
    with Ledger(source, target) as ledger:
        for ready in Answerer(llm, seed=seed).answers(ledger.unanswered()):
            for answer in ready:
                ledger.take(answer)
            progress(ledger.summary)
        return ledger.summary
