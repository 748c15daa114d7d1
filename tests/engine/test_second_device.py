"""A model runs on the device that `jax.default_device` names, and its weights stream there, whatever thread it is."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_all_of_a_model_lies_on_the_default_device() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    program = Path(__file__).parent / "second_device.py"
    done = subprocess.run(
        [sys.executable, str(program)], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    resident, streamed = json.loads(done.stdout)
    assert resident["cache"] == resident["weights"] == [1]
    assert streamed == resident
