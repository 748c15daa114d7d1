"""Running a command to its end while noting when its first output comes and how much memory it took at most."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from benchmarks.environment import ROOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that succeeded.

    `first_output` is in seconds from the process's start to its first byte on stdout, or to its end without one;
    `peak_resident` in bytes, pages of mapped files included.
    """

    output: bytes
    first_output: float
    peak_resident: int


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command in the repository's root; RuntimeError with its stderr if it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with process.stdout as stdout:
            first = stdout.read(1)
            seconds = time.perf_counter() - start
            output = first + stdout.read()
        # Popen.wait would not tell what this child alone has used.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            reason = errors.read().decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)} must succeed, got exit code {process.returncode}: {reason}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(output=output, first_output=seconds, peak_resident=usage.ru_maxrss * unit)
