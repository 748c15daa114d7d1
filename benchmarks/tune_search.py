"""The search among a kernel's configurations: one field after the other, and when its result is worth an entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pallas_kernels.case import Search
from pallas_kernels.tuning import Entry, size_class

ROUNDS = 2
"""How often each field has its turn: what one field should be may depend on another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found with a configuration. `cost`: what is compared, lower is better; `facts`: what a table records.

    `failure`: why it cannot be used, though one that differs from it in another field may.
    """

    cost: float = float("inf")
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""


Try = Callable[[Sequence[Any]], Sequence[Trial]]
"""From configurations, which are compared with each other, to what was found."""


def limited(search: Search, fields: Sequence[str]) -> Search:
    """The search among candidates that differ from the heuristic's in some fields only; in any where none is named."""
    first = search.candidates[0]
    kept = [c for c in search.candidates if not fields or set(_differ(c, first, search.derived)) <= set(fields)]
    return dataclasses.replace(search, candidates=kept)


def descend(search: Search, attempt: Try) -> Any:
    """The best configuration that is met on the way from the heuristic's to one that no other beats in one field."""
    best = search.candidates[0]
    names = [field.name for field in dataclasses.fields(best) if field.name not in search.derived]
    met = {best: Trial()}
    for _ in range(ROUNDS):
        before = best
        for name in names:
            line = [best, *(c for c in search.candidates if _differ(c, best, search.derived) == [name])]
            if len(line) > 1:
                trials = dict(zip(line, attempt(line), strict=True))
                best = min(line, key=lambda config: trials[config].cost)  # noqa: B023
                met |= trials
        if best == before:
            break
    usable = [config for config, trial in met.items() if not trial.failure]
    return min(usable, key=lambda config: met[config].cost, default=search.candidates[0])


def _differ(a: Any, b: Any, derived: Sequence[str]) -> list[str]:
    names = [field.name for field in dataclasses.fields(a) if field.name not in derived]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def entry_for(search: Search, best: Any, attempt: Try, *, gain: float, sizes: Sequence[str]) -> Entry | None:
    """An entry for a configuration that is better than the heuristic's by the share `gain` at least, else None.

    `sizes`: those of the shape that the entry is bound to.
    """
    first = search.candidates[0]
    if best == first:
        return None
    usual, found = attempt([first, best])
    if found.failure or found.cost > (1 - gain) * usual.cost:
        return None
    changed = {name: getattr(best, name) for name in _differ(best, first, search.derived)}
    return Entry(
        kernel=search.kernel,
        format=search.format,
        sizes={name: size_class(search.sizes[name]) for name in sizes},
        config=changed,
        facts={"with this": dict(found.facts), "heuristic": dict(usual.facts)},
    )
