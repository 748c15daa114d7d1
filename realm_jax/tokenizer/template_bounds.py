"""Limits on what a chat template may compute: time, the size of each value, and the size of all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realm_jax.tokenizer.errors import ChatTemplateError

__all__ = ["Meter", "TemplateLimits", "weight"]


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """Bounds of one rendering. Sizes count characters and elements.

    `value` bounds each text or list, the rendered prompt too; `total` bounds the sum of all that are
    made on the way, and so the memory.
    """

    seconds: float = 10.0
    value: int = 4_000_000
    total: int = 256_000_000


def weight(value: Any, limit: int) -> int:
    """Characters and elements of a value with everything in it; counting stops above `limit`.

    A list that holds one list twice counts it twice, as printing or comparing it would.
    """
    size, stack = 0, [value]
    while stack and size <= limit:
        item = stack.pop()
        size += 1
        if isinstance(item, (str, bytes)):
            size += len(item)
        elif isinstance(item, (Mapping, list, tuple, set, frozenset)):
            if len(item) > limit:
                return limit + 1
            stack.extend(item)
            if isinstance(item, Mapping):
                stack.extend(item.values())
    return size


class Meter:
    """Counts the work of one rendering and ends it when a limit is passed."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._spent = self._written = 0
        self._deadline = time.monotonic() + limits.seconds

    def tick(self) -> None:
        """Check the time."""
        if time.monotonic() > self._deadline:
            raise ChatTemplateError(f"a chat template must finish within {self._limits.seconds:g} s; it may be endless")

    def charge(self, size: int) -> None:
        """Account for a value of this size before it is made."""
        self.tick()
        self._spent += size
        if size > self._limits.value or self._spent > self._limits.total:
            raise ChatTemplateError(
                f"a chat template must not build a value above {self._limits.value} characters, or "
                f"{self._limits.total} in all; shorten the messages or raise the limits"
            )

    def write(self, size: int) -> None:
        """Account for the next `size` characters of the rendered text."""
        self._written += size
        self.charge(size)
        if self._written > self._limits.value:
            self.charge(self._written)

    def inspect(self, value: Any) -> None:
        """Refuse a value that is too large to print or compare."""
        self.tick()
        if isinstance(value, (Mapping, list, tuple, set)) and weight(value, self._limits.value) > self._limits.value:
            self.charge(self._limits.value + 1)

    def weigh(self, value: Any, times: int = 1) -> None:
        """Account for a value and what it holds, `times` over."""
        self.charge(weight(value, self._limits.value) * times)
