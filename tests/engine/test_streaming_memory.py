"""The memory of a process whose weights stream: bounded by the window, and the same after many steps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cpu_kernels
from realm_jax import gguf

PROBE = Path(__file__).parent / "memory_probe.py"
MIB = 2**20
# What may differ between two processes, and between rounds, beside weights: free pieces that the allocator keeps
# between the arrays of a window, and 64 KiB around each tensor, which the system maps when a page of it is touched.
SLACK = 12 * MIB
IMPLEMENTATIONS = [
    pytest.param("xla", marks=pytest.mark.slow),
    pytest.param("cpu", marks=pytest.mark.skipif(not cpu_kernels.is_available(), reason="none")),
]

if not Path("/proc/self/status").exists():
    pytest.skip("needs Linux's /proc to see the memory of a process", allow_module_level=True)


def probe(path: Path, implementation: str, memory: int) -> Any:
    done = subprocess.run(
        [sys.executable, str(PROBE), str(path), implementation, str(memory)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_window_of_a_third_takes_a_third(smollm2_path: Path, implementation: str) -> None:
    weights = sum(raw.nbytes for raw in gguf.open(smollm2_path).tensors.values())
    window = int(0.3 * weights)
    resident = probe(smollm2_path, implementation, 2 * weights)  # the same programs, with every weight in memory
    streamed = probe(smollm2_path, implementation, window)
    assert streamed["tokens"] == resident["tokens"] and streamed["cache"] == resident["cache"]
    most = max(peak["both"] for peak in resident["peaks"]) - (weights - window) + SLACK
    assert max(peak["both"] for peak in streamed["peaks"]) <= most
    # What JAX refers to is not the allocator's: of the weights at most the window's share, with no slack.
    held, all_of_them = (max(found["live"]) - found["cache"] for found in (streamed, resident))
    assert held <= all_of_them * window / weights
    # Of three rounds of 10 steps or more: a layer that stayed would be 2 MB a step, five times what is allowed.
    assert streamed["rests"][-1] - streamed["rests"][0] <= SLACK
