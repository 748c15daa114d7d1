"""Activation points: every named activation of a model can be read or replaced through one small mechanism."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax

Edit = Callable[[jax.Array], jax.Array]
_GENERIC = re.compile(r"^layers\.\d+")


def _descend(pattern: str, scope: str) -> str | None:
    """What is left of a dotted glob inside `scope` ("layers.3"), or None where it does not reach into it."""
    head, *rest = pattern.split(".")
    for segment in scope.split("."):
        if head == "**":
            break
        if not rest or not fnmatch.fnmatchcase(segment, head):
            return None
        head, *rest = rest
    return ".".join((head, *rest))


def _matches(pattern: str, name: str) -> bool:
    segments, globs = name.split("."), pattern.split(".")
    if globs[-1] == "**":
        globs.pop()
        segments = segments[: len(globs)]
    return len(segments) == len(globs) and all(map(fnmatch.fnmatchcase, segments, globs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taps:
    """Which activation points to read and which to replace; static and hashable, so it is part of a program's key.

    Names are dotted (`layers.12.attn.q`); a pattern matches segment by segment as a shell glob
    (`layers.*.resid_post`), and `**` at its end matches whatever follows (`layers.0.**`).
    Edits of one point apply in order.
    """

    capture: tuple[str, ...] = ()
    edits: tuple[tuple[str, Edit], ...] = ()

    @classmethod
    def of(cls, capture: str | Iterable[str] = (), edits: Mapping[str, Edit] | None = None) -> Taps:
        """Taps from the forms that users write: one or several patterns, and a mapping of pattern to function."""
        patterns = (capture,) if isinstance(capture, str) else tuple(capture)
        return cls(capture=patterns, edits=tuple((edits or {}).items()))

    def scope(self, name: str) -> Taps:
        """The taps that reach into a part of the model, with that part's prefix taken off."""
        capture = [rest for pattern in self.capture if (rest := _descend(pattern, name)) is not None]
        edits = [(rest, fn) for pattern, fn in self.edits if (rest := _descend(pattern, name)) is not None]
        return Taps(capture=tuple(dict.fromkeys(capture)), edits=tuple(edits))

    def check(self, points: Sequence[str]) -> None:
        """Raise ValueError for a pattern that matches none of a model's points."""
        for pattern in (*self.capture, *(pattern for pattern, _ in self.edits)):
            if not any(_matches(pattern, point) for point in points):
                known = ", ".join(dict.fromkeys(_GENERIC.sub("layers.*", point) for point in points))
                raise ValueError(f"no activation point matches {pattern!r}; this model has {known}")

    def wants(self, name: str) -> bool:
        """Whether a point is read or replaced; points that cost something to compute ask first."""
        return any(_matches(p, name) for p in self.capture) or any(_matches(p, name) for p, _ in self.edits)


NO_TAPS = Taps()


class Recorder:
    """The taps of one call of one part of a model, and what it has captured so far."""

    def __init__(self, taps: Taps) -> None:
        self.taps = taps
        self.captured: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Pass an activation through point `name`: edited if asked, then captured if asked."""
        for pattern, edit in self.taps.edits:
            if _matches(pattern, name):
                value = _edited(name, edit, value)
        if any(_matches(pattern, name) for pattern in self.taps.capture):
            self.captured[name] = value
        return value

    def wants(self, *names: str) -> bool:
        """Whether any of these points is read or replaced."""
        return any(map(self.taps.wants, names))

    def merge(self, scope: str, captured: Mapping[str, jax.Array]) -> None:
        """Add what a part of the model captured, under the part's prefix."""
        self.captured.update({f"{scope}.{name}": value for name, value in captured.items()})


def _edited(name: str, edit: Edit, value: jax.Array) -> jax.Array:
    result = edit(value)
    if result.shape != value.shape:
        raise ValueError(f"an edit of {name} must keep the shape {value.shape}, got {result.shape}")
    return result.astype(value.dtype)
