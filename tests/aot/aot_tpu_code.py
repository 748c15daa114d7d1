"""What libtpu's dump says about a TPU kernel: the bundles of its schedule, spills, and the vector memory it takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

_UNITS = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuKernel:
    """One kernel.

    `bundles` of its schedule are about the cycles of a grid step; `units`: how often each is used; `vmem_bytes`:
    windows of operands and scratch.
    """

    bundles: int
    vmem_bytes: int
    units: dict[str, int]

    @property
    def spills(self) -> int:
        """Registers that did not fit: stores and loads."""
        return self.units["spill"] + self.units["fill"]


def kernel_of(files: Iterable[Path], entry: str) -> TpuKernel | None:
    """The kernel whose name contains `entry`, from new files of the dump; None where they hold none."""
    own = [path for path in files if entry in path.name]
    schedule = next((path for path in own if path.name.endswith("schedule-analysis_final_bundles.txt")), None)
    if schedule is None:
        return None
    program = next(path for path in own if path.name.endswith("-02-original.txt"))
    vmem = re.findall(r"space=vmem, size = (0x[0-9a-f]+)", program.read_text())
    bundles = re.search(r"total scheduled bundles\D+(\d+)", schedule.read_text())
    totals = dict.fromkeys(_UNITS, 0)
    for path in own:
        if path.name.endswith("final_hlo-static-per-bundle-utilization.txt"):
            for line in path.read_text().splitlines():
                counts = line.split()
                if len(counts) == len(_UNITS) and all(count.isdigit() for count in counts):
                    totals = {unit: totals[unit] + int(count) for unit, count in zip(_UNITS, counts, strict=True)}
    return TpuKernel(
        bundles=int(bundles[1]) if bundles else 0, vmem_bytes=sum(int(size, 16) for size in vmem), units=totals
    )
