"""Ledger: which lines of a batch file are answered, kept by the one process that writes the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realm_jax.jobs.answers import error_line
from realm_jax.jobs.journal import Journal
from realm_jax.jobs.lines import BatchLine, answer_key, read_lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSummary:
    """How a job stands: lines answered by the model in this run, by an error, and by runs before."""

    answered: int
    failed: int
    before: int


class Ledger:
    """Every line is answered once, whatever is offered, and however often.

    `source` has the lines, `target` the answers, earlier runs' included; it may be open in one ledger at a time. Use
    as a context manager.
    """

    def __init__(self, source: Path, target: Path) -> None:
        """Read what is answered. ValueError for a target with anything else in it, RuntimeError while it is in use."""
        if target.exists() and source.samefile(target):
            raise ValueError(f"the answers must not go into the file of the requests, {source}; name another")
        self.summary = JobSummary(answered=0, failed=0, before=0)
        self.waiting = 0  # lines that were handed out and are not answered
        self._source = source
        self._journal = Journal(target)
        try:
            self._done = {_key_of(answer) for answer in self._journal.lines()}
        except BaseException:
            self._journal.close()
            raise

    def unanswered(self) -> Iterator[BatchLine]:
        """The requests that wait for an answer, in one pass; lines that are none get theirs on the way."""
        for line in read_lines(self._source):
            if line.key in self._done:
                self._count(before=1)
                continue
            self.waiting += 1
            if line.error is None:
                yield line
            else:
                self.take(error_line(line, line.error))

    def take(self, answer: Mapping[str, Any]) -> bool:
        """Write an answer, unless its line has one. Returns whether it was written."""
        key = _key_of(answer)
        if key in self._done:
            return False
        self._journal.write(answer)
        self._done.add(key)
        self.waiting -= 1
        self._count(**{"answered" if answer["error"] is None else "failed": 1})
        return True

    def _count(self, **more: int) -> None:
        changed = {name: getattr(self.summary, name) + count for name, count in more.items()}
        self.summary = dataclasses.replace(self.summary, **changed)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()


def _key_of(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The key of the line that an answer belongs to."""
    if not answer.keys() >= {"id", "custom_id", "error"}:
        raise ValueError("the output file has lines that are no answers; choose another output file")
    return answer_key(answer["id"], answer["custom_id"], (answer["error"] or {}).get("code"))
