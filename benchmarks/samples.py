"""Repeated measurements of one quantity: their median and spread, and the loop that takes them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

_LISTED = 20  # more values than this are summed up in JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Measured values in `unit`, such as "us" or "tokens/s"; at least one."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The tenth and ninetieth percentile; of few values, nearly the smallest and the largest."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        tenths = statistics.quantiles(self.values, n=10, method="inclusive")
        return tenths[0], tenths[-1]

    def as_json(self) -> dict[str, Any]:
        """Plain values; the single measurements too where there are few."""
        low, high = self.spread
        summary = {"unit": self.unit, "median": self.median, "p10": low, "p90": high, "min": min(self.values)}
        listed = {"values": list(self.values)} if len(self.values) <= _LISTED else {}
        return {**summary, "count": len(self.values), **listed}

    def __str__(self) -> str:
        low, high = self.spread
        return f"{_short(self.median)} ({_short(low)}-{_short(high)})"


def timed(
    work: Callable[[], object], count: int, *, warm_up: int = 0, between: Callable[[], object] | None = None
) -> list[float]:
    """Seconds that each of `count` calls took, after `warm_up` calls that are not counted.

    `between` runs before every call, outside its time.
    """
    seconds = []
    for i in range(-warm_up, count):
        if between is not None:
            between()
        start = time.perf_counter()
        work()
        if i >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds


def _short(value: float) -> str:
    """Three significant digits, and no exponent."""
    digits = next((d for d, least in enumerate((100, 10, 1)) if abs(value) >= least), 3)
    return f"{value:.{digits}f}"
