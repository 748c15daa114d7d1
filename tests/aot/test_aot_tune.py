"""The tuner without a device: configurations ranked by what they compile to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pallas_kernels.tuning import read_table

ROOT = Path(__file__).parents[2]


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_entries_beat_the_heuristic(target: str, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.tune",
        "--target",
        target,
        "--match",
        "Q4_0 1x",
        "--output",
        str(table),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "matmul Q4_0 1x4096x4096: heuristic" in done.stderr
    for entry in read_table(table).entries if table.exists() else ():
        found, usual = entry.facts["with this"], entry.facts["heuristic"]
        if target == "v5e":
            assert found["microseconds"] < usual["microseconds"]
        else:
            assert found["instructions_per_code"] < usual["instructions_per_code"] and not found["spilled_bytes"]
