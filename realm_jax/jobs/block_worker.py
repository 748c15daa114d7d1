"""Block worker: a process with a model of its own, which answers lines of a batch file block by block."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realm_jax.jobs.answering import Answerer
from realm_jax.jobs.lines import BatchLine
from realm_jax.llm import LLM

LINES, ANSWERS = "lines", "answers"  # columns: one row is a whole block, as a JSON list
FAULT = "fault"  # what the only answer of a block has alone, if it ends the job: the reason
_IN_BLOCK = ("number", "custom_id", "url", "body")


class BlockWorker:
    """Blocks in, answers out; picklable by name, so that any machine with this package can make one.

    What goes wrong comes back as an answer too: every block would meet it again, so none is tried anew.
    """

    def __init__(self, model: str, seed: int, settings: Mapping[str, Any]) -> None:
        """Load the model; `settings` are what `LLM` takes."""
        self._fault: str | None = None
        try:
            self._answerer = Answerer(LLM(model, quiet=True, **settings), seed=seed)
        except Exception as error:
            self._fault = (
                f"every machine of the cluster must be able to load {model}, and {platform.node()} is not: "
                f"{_said(error)}; a file must be at the same path on all of them, hf:owner/repo/file.gguf is fetched"
            )

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The answers of each block: one for each line in the order of the lines, or a fault."""
        found = [json.dumps(self._answers_or_fault(json.loads(text))) for text in batch[LINES]]
        return {ANSWERS: np.array(found, dtype=object)}

    def _answers_or_fault(self, block: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self._fault is not None:
            return [{FAULT: self._fault}]
        try:
            return self._answers([BatchLine(**line) for line in block])
        except Exception as error:
            return [{FAULT: f"a worker on {platform.node()} failed: {_said(error)}"}]

    def _answers(self, lines: Sequence[BatchLine]) -> list[dict[str, Any]]:
        found = {answer["id"]: answer for ready in self._answerer.answers(lines) for answer in ready}
        return [found[line.id] for line in lines]


def block_of(lines: Sequence[BatchLine]) -> str:
    """The block of some lines, none of which is an error, as it travels: ASCII."""
    return json.dumps([{name: getattr(line, name) for name in _IN_BLOCK} for line in lines])


def _said(error: Exception) -> str:
    """An error with its kind, unless that is one by which the library refuses what it was given."""
    text = " ".join(str(error).split())
    plain = isinstance(error, ValueError | OSError) or type(error) is RuntimeError
    return text if plain and text else f"{type(error).__name__}: {text or 'no message'}"
