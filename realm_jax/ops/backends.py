"""Which implementation an operation uses: the one place that turns a request into a backend name."""

from __future__ import annotations

from typing import Literal

Implementation = Literal["xla"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla",)


def choose_implementation(requested: str | None) -> Implementation:
    """The implementation to use, decided outside any traced function.

    `None` asks for the fastest one this installation has. An explicit name is taken or refused, never replaced.
    """
    if requested is None:
        return "xla"
    for name in IMPLEMENTATIONS:
        if requested == name:
            return name
    raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {requested!r}")
