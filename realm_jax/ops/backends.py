"""Which implementation an operation uses: the one place that turns a request into a backend name."""

from __future__ import annotations

from typing import Literal, get_args

import jax

import cpu_kernels
from cpu_kernels import InstructionSet

Implementation = Literal["xla", "cpu", "null"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
"""`xla`: the reference, on every platform. `cpu`: native kernels; a program with them cannot be exported (build with
`xla` for that). `null`: the same calls with kernels that compute nothing, to measure what a step costs beside them;
never chosen unless named."""


def fastest_implementation() -> Implementation:
    """What this installation runs fastest on JAX's default backend: the native kernels where they can be used."""
    native = jax.default_backend() == "cpu" and cpu_kernels.is_available()
    return "cpu" if native else "xla"


def instruction_set_of(implementation: str | None) -> InstructionSet:
    """What the native kernels of an implementation run on."""
    return InstructionSet.NULL if implementation == "null" else InstructionSet.BEST


def choose_implementation(requested: str | None) -> Implementation:
    """The implementation to use, decided outside any traced function.

    `None` is the reference, `xla`. An explicit name is taken or refused, never replaced: ValueError for an unknown
    one, RuntimeError for one that cannot be used here.
    """
    if requested is None:
        return "xla"
    chosen: Implementation | None = next((name for name in IMPLEMENTATIONS if name == requested), None)
    if chosen is None:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {requested!r}")
    if chosen != "xla" and not cpu_kernels.is_available():
        raise RuntimeError(f"implementation {chosen!r} cannot be used: {cpu_kernels.why_unavailable()}")
    return chosen
