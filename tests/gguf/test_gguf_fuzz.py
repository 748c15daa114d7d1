"""A mutated file ends in GGUFError or is readable to its last byte, within memory and time; never in a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
ROOT = FUZZ.parents[2]


def _fuzz(mutants: int, seed: int) -> dict[str, int]:
    command = [sys.executable, str(FUZZ), "--mutants", str(mutants), "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check(counts: dict[str, int], mutants: int) -> None:
    assert counts["mutants"] == mutants == counts["opened"] + counts["rejected"]
    assert counts["failures"] == 0
    assert counts["header"] >= 0.8 * mutants
    # Mutants that are all rejected, or all opened, would show that the mutations miss the fields.
    assert counts["opened"] >= 0.05 * mutants
    assert counts["rejected"] >= 0.5 * mutants


def test_mutants():
    _check(_fuzz(25_000, seed=0), 25_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_mutants(seed):
    _check(_fuzz(100_000, seed), 100_000)
