"""What an engine reports of itself: counters, and a line of JSON for every launch."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, Protocol, runtime_checkable

from realm_jax.engine.scheduler import ScheduledStep


@dataclasses.dataclass(kw_only=True)
class EngineStats:
    """Counters since the engine was made.

    Attributes:
        requests: sequences that were queued; `finished` and `aborted` of them came to an end.
        steps: launches of the device.
        prompt_tokens: of the prompts that were begun; `cached_tokens` of them were found in the cache of prefixes.
        computed_tokens: that were sent to the device, computed anew after a preemption or past an end included.
        generated_tokens: that were handed to sequences.
        preemptions: sequences that gave their blocks back to be computed anew.
        compilations: programs of the runner so far.
        waited: seconds in which the host had nothing to do but wait for the device.
    """

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    compilations: int = 0
    waited: float = 0.0


@runtime_checkable
class TextWriter(Protocol):
    """Anything that takes text: a file, or a buffer."""

    def write(self, text: str, /) -> object:
        """Take some text."""


class StepTrace:
    """Writes what each launch was made of to a text file, one JSON object a line."""

    def __init__(self, file: TextWriter) -> None:
        self._file = file
        self._number = 0

    def write(self, step: ScheduledStep[Any], *, waiting: int, free: tuple[int, ...]) -> None:
        """One launch: its time, parts as [start, count, sampled, scored], copies, and what is left behind it."""
        line = {
            "step": self._number,
            "time": time.monotonic(),
            "parts": [[part.start, part.count, part.samples, len(part.scored)] for part in step.parts],
            "in_a_row": step.steps,
            "copies": len(step.copies),
            "preempted": len(step.preempted),
            "waiting": waiting,
            "free_blocks": free,
        }
        self._file.write(json.dumps(line) + "\n")
        self._number += 1
