"""Running a command to its end while noting when its first output comes and how much memory it took until then."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.environment import ROOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that succeeded.

    `first_output` is in seconds from the process's start to its first byte on stdout, or to its end without one;
    `peak_resident` is the most memory it held until then, in bytes, pages of mapped files included. None where the
    system does not tell.
    """

    output: bytes
    first_output: float
    peak_resident: int | None


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command in the repository's root; RuntimeError with its stderr if it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds = time.perf_counter() - start
            peak = _peak_resident(process.pid)
            output = first + process.stdout.read()
        if process.returncode:
            errors.seek(0)
            reason = errors.read().decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)} must succeed, got exit code {process.returncode}: {reason}")
    return Finished(output=output, first_output=seconds, peak_resident=peak)


def _peak_resident(pid: int) -> int | None:
    """The kernel's high-water mark of a process that still runs; getrusage would count what its parent held too."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else None
