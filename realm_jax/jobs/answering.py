"""Answering: requests of a batch file through one engine, as many at once as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from realm_jax.jobs.answers import answer_line, error_line
from realm_jax.jobs.bodies import request_of
from realm_jax.jobs.lines import BatchLine, LineError
from realm_jax.llm import LLM

_QUEUED = 4  # requests in the engine for every sequence that runs


class Answerer:
    """Answers requests with a model; `seed` as in `bodies.request_of`."""

    def __init__(self, llm: LLM, *, seed: int) -> None:
        self._engine = llm.llm_engine()
        self._model = llm.path.stem
        self._seed = seed

    def answers(self, lines: Iterable[BatchLine]) -> Iterator[list[dict[str, Any]]]:
        """Yields after each step what has become ready: one answer for each line, an error where it has no other.

        Lines are taken as there is room for them.
        """
        remaining, waiting = iter(lines), dict[str, BatchLine]()
        most = _QUEUED * self._engine.engine.config.max_num_seqs
        ended = False
        while not ended or waiting:
            room = most - len(waiting)
            taken = list(islice(remaining, room))
            ended = len(taken) < room
            ready = []
            for line in taken:
                if (refusal := self._queue(line)) is None:
                    waiting[line.id] = line
                else:
                    ready.append(error_line(line, refusal))
            for output in self._engine.step() if waiting else ():
                if output.finished:
                    ready.append(answer_line(waiting.pop(output.request_id), output, self._model))
            yield ready

    def _queue(self, line: BatchLine) -> LineError | None:
        """Hand a request to the engine, or say why it takes none."""
        try:
            self._engine.add_request(line.id, *request_of(line, self._engine, self._seed))
        except (ValueError, TypeError) as refusal:
            return LineError(code="invalid_request", message=str(refusal))
        return None
