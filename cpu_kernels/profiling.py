"""profile: how often each native handler is called, and how long its calls take."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator

from cpu_kernels.native import library

__all__ = ["HANDLERS", "HandlerTime", "profile"]

HANDLERS = (
    "project",
    "project_gated",
    "project_add",
    "quantized_matmul",
    "paged_attention",
    "rope_table",
    "argmax",
    "mix_experts",
    "route",
)
"""The handlers, in the order of src/profile.h."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandlerTime:
    """Calls of a handler and their seconds, all calls together; calls at the same time count side by side."""

    calls: int
    seconds: float


@contextlib.contextmanager
def profile() -> Iterator[dict[str, HandlerTime]]:
    """Count calls of every handler in the process within a `with` block; the yielded dict is filled at its end.

    One profile at a time: a second one begins from zero.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    native = library("profile")
    found: dict[str, HandlerTime] = {}
    numbers = (ctypes.c_int64 * (2 * len(HANDLERS)))()
    native.realm_start_profile()
    try:
        yield found
    finally:
        native.realm_stop_profile(numbers)
        for i, name in enumerate(HANDLERS):
            found[name] = HandlerTime(calls=numbers[2 * i], seconds=numbers[2 * i + 1] / 1e9)
