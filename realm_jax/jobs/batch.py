"""Batch: every request of a file answered once in another, however often the process is killed and run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from realm_jax.engine import LLMEngine
from realm_jax.jobs.answers import answer_line, error_line
from realm_jax.jobs.bodies import request_of
from realm_jax.jobs.journal import Journal
from realm_jax.jobs.lines import BatchLine, LineError, answer_key, read_lines
from realm_jax.llm import LLM

_QUEUED = 4  # requests in the engine for every sequence that runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSummary:
    """How a job ended: lines answered by the model in this run, by an error, and by runs before."""

    answered: int
    failed: int
    before: int


def run_batch(
    llm: LLM, source: Path, target: Path, *, seed: int = 0, progress: Callable[[JobSummary], object] = lambda _: None
) -> JobSummary:
    """Answer what is not answered yet. Answers come in the order in which they are ready.

    `source` has OpenAI's batch lines, for /v1/chat/completions and /v1/completions; a line that is none, or whose
    custom_id an earlier one has, is answered with an error. `target` has the answers: it only grows, each line in one
    piece, and an interrupted job goes on with it. `seed`: see `bodies.request_of`. `progress` is told after each step.
    """
    if target.exists() and source.samefile(target):
        raise ValueError(f"the answers must not go into the file of the requests, {source}; name another")
    with Journal(target) as journal:
        return _Job(llm.llm_engine(), journal, llm.path.stem, seed).run(read_lines(source), progress)


class _Job:
    def __init__(self, engine: LLMEngine, journal: Journal, model: str, seed: int) -> None:
        self._engine = engine
        self._journal = journal
        self._model = model
        self._seed = seed
        self._lines: dict[str, BatchLine] = {}
        self._done = {_key_of(answer) for answer in journal.lines()}
        self._summary = JobSummary(answered=0, failed=0, before=0)

    def run(self, lines: Iterator[BatchLine], progress: Callable[[JobSummary], object]) -> JobSummary:
        most = _QUEUED * self._engine.engine.config.max_num_seqs
        while True:
            room = most - self._engine.get_num_unfinished_requests()
            for line in islice(lines, room):
                self._take(line)
            progress(self._summary)
            if self._engine.has_unfinished_requests():
                self._step()
            elif (line := next(lines, None)) is None:
                return self._summary
            else:
                self._take(line)

    def _take(self, line: BatchLine) -> None:
        """Queue a request, unless it is answered already or cannot be."""
        if line.key in self._done:
            self._count(before=1)
            return
        error = line.error
        if error is None:
            try:
                self._engine.add_request(line.id, *request_of(line, self._engine, self._seed))
            except (ValueError, TypeError) as refusal:
                error = LineError(code="invalid_request", message=str(refusal))
        if error is None:
            self._lines[line.id] = line
        else:
            self._journal.write(error_line(line, error))
            self._count(failed=1)

    def _step(self) -> None:
        for output in self._engine.step():
            if output.finished:
                self._journal.write(answer_line(self._lines.pop(output.request_id), output, self._model))
                self._count(answered=1)

    def _count(self, **more: int) -> None:
        changed = {name: getattr(self._summary, name) + count for name, count in more.items()}
        self._summary = dataclasses.replace(self._summary, **changed)


def _key_of(answer: dict[str, Any]) -> tuple[str, str]:
    """The key of the line that an answer of an earlier run belongs to."""
    if not answer.keys() >= {"id", "custom_id", "error"}:
        raise ValueError("the output file has lines that are no answers; choose another output file")
    return answer_key(answer["id"], answer["custom_id"], (answer["error"] or {}).get("code"))
