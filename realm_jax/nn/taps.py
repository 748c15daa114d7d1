"""Activation points: every named activation of a model can be read or replaced through one small mechanism."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

Edit = Callable[[jax.Array], jax.Array]
Edits = Mapping[str, Edit]
"""Functions by the pattern of the points that they replace."""

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
class PointEdit:
    """What replaces the points that match a pattern: at every token, or at those with this `edit_id` alone."""

    pattern: str
    function: Edit
    edit_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taps:
    """Which activation points to read and which to replace; static and hashable, so it is part of a program's key.

    Names are dotted (`layers.12.attn.q`); a pattern matches segment by segment as a shell glob
    (`layers.*.resid_post`), and `**` at its end matches whatever follows (`layers.0.**`).
    Edits of one point apply in order.
    """

    capture: tuple[str, ...] = ()
    edits: tuple[PointEdit, ...] = ()

    @classmethod
    def of(cls, capture: str | Iterable[str] = (), edits: Edits | None = None) -> Taps:
        """Taps from the forms that users write: one or several patterns, and a mapping of pattern to function."""
        patterns = (capture,) if isinstance(capture, str) else tuple(capture)
        return cls(capture=patterns, edits=_point_edits(edits or {}))

    @classmethod
    def of_each(cls, edits: Sequence[Edits | None]) -> tuple[Taps, list[int]]:
        """The taps of a batch in which each request has edits of its own, and each request's `edit_id`.

        Requests with the same functions at the same patterns have the same id; those without any have 0.
        """
        numbers: dict[tuple[tuple[str, Edit], ...], int] = {(): 0}
        ids = [numbers.setdefault(tuple((one or {}).items()), len(numbers)) for one in edits]
        together = [edit for items, number in numbers.items() for edit in _point_edits(dict(items), number)]
        return cls(edits=tuple(together)), ids

    @property
    def selective(self) -> bool:
        """Whether some edits concern tokens of one `edit_id` alone."""
        return any(edit.edit_id is not None for edit in self.edits)

    def scope(self, name: str) -> Taps:
        """The taps that reach into a part of the model, with that part's prefix taken off."""
        capture = [rest for pattern in self.capture if (rest := _descend(pattern, name)) is not None]
        edits = [
            dataclasses.replace(edit, pattern=rest)
            for edit in self.edits
            if (rest := _descend(edit.pattern, name)) is not None
        ]
        return Taps(capture=tuple(dict.fromkeys(capture)), edits=tuple(edits))

    def check(self, points: Sequence[str]) -> None:
        """Raise ValueError for a pattern that matches none of a model's points."""
        for pattern in (*self.capture, *(edit.pattern for edit in self.edits)):
            if not any(_matches(pattern, point) for point in points):
                known = ", ".join(dict.fromkeys(_GENERIC.sub("layers.*", point) for point in points))
                raise ValueError(f"no activation point matches {pattern!r}; this model has {known}")

    def wants(self, name: str) -> bool:
        """Whether a point is read or replaced; points that cost something to compute ask first."""
        return any(_matches(p, name) for p in self.capture) or any(_matches(edit.pattern, name) for edit in self.edits)


NO_TAPS = Taps()


def _point_edits(edits: Edits, edit_id: int | None = None) -> tuple[PointEdit, ...]:
    return tuple(PointEdit(pattern=pattern, function=fn, edit_id=edit_id) for pattern, fn in edits.items())


class Recorder:
    """The taps of one call of one part of a model, and what it has captured so far.

    `edit_ids int32[T]`: which tokens the edits of one id concern; selective taps need them.
    """

    def __init__(self, taps: Taps, edit_ids: jax.Array | None = None) -> None:
        self.taps = taps
        self.edit_ids = edit_ids
        self.captured: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Pass an activation through point `name`: edited if asked, then captured if asked."""
        for edit in self.taps.edits:
            if _matches(edit.pattern, name):
                edited = _edited(name, edit.function, value)
                value = edited if edit.edit_id is None else self._where(edit.edit_id, edited, value)
        if any(_matches(pattern, name) for pattern in self.taps.capture):
            self.captured[name] = value
        return value

    def at_rows(self, rows: jax.Array) -> Recorder:
        """The recorder for activations of some of the tokens, `int32[L]` of T; what it captures is captured here."""
        chosen = Recorder(self.taps, None if self.edit_ids is None else self.edit_ids[rows])
        chosen.captured = self.captured
        return chosen

    def _where(self, edit_id: int, edited: jax.Array, value: jax.Array) -> jax.Array:
        """The edited rows of tokens with this id, and the others as they are."""
        if self.edit_ids is None:
            raise ValueError("edits of single requests need a batch with edit_ids; give edits for all requests instead")
        concerned = (self.edit_ids == edit_id).reshape(-1, *(1 for _ in value.shape[1:]))
        return jnp.where(concerned, edited, value)

    def edits(self, name: str) -> bool:
        """Whether a point is replaced."""
        return any(_matches(edit.pattern, name) for edit in self.taps.edits)

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
