"""The rows that `make aot` prints: one for each kernel and each model's step, on each target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

_HEADINGS = (
    "target",
    "kernel or model",
    "compile s",
    "registers",
    "spills",
    "smem or VMEM",
    "bytes per device",
    "custom calls",
    "fallbacks",
    "instr/code (TPU: codes/bundle)",
    "result",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What compiling one thing told. None: not a property of such a thing, or not told for this target.

    `spills` in bytes on CUDA, in moves on TPU. `memory`: shared memory of a block, or VMEM, in bytes. `bytes`: the
    program's arguments on one device. `per_code`: instructions of the main loop per weight code; on TPU, weight codes
    per bundle. `failure`: empty where it compiled within its limits; `note`: what to know about the row.
    """

    target: str
    name: str
    seconds: float | None = None
    registers: int | None = None
    spills: int | None = None
    memory: int | None = None
    bytes: int | None = None
    calls: int | None = None
    fallbacks: int | None = None
    per_code: float | None = None
    failure: str = ""
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as the table shows it."""
        numbers = (self.registers, self.spills, self.memory, self.bytes, self.calls, self.fallbacks)
        result = f"FAILED: {self.failure}" if self.failure else "ok"
        return (
            self.target,
            self.name,
            "" if self.seconds is None else f"{self.seconds:.1f}",
            *("" if number is None else f"{number:,}" for number in numbers),
            "" if self.per_code is None else f"{self.per_code:.2f}",
            f"{result} ({self.note})" if self.note else result,
        )


def table(rows: Iterable[Row]) -> str:
    """All rows in aligned columns, in Markdown."""
    lines: list[Sequence[str]] = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
    ruler = ["-" * width for width in widths]
    body = [lines[0], ruler, *lines[1:]]
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in body)
