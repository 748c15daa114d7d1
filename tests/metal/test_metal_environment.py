"""What is lowered for Apple GPUs, in the environment that `make metal` leaves, from whichever one the tests run in."""

import subprocess

import jax
import metal_platform
import pytest

PYTHON = metal_platform.ENVIRONMENT / "bin" / "python"


def test_both_real_models_lower_for_metal() -> None:
    if not PYTHON.exists() or not metal_platform.PLUGIN.is_dir():
        pytest.skip("needs Python 3.12 or newer with jax 0.11 and the plug-in jax-mps: make metal")
    if jax.version.__version_info__[:2] == (0, 11):
        pytest.skip("this is such an environment, and runs these tests itself")
    chosen = "test_a_step_holds and not llama"
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "tests/metal/test_metal_steps.py"]
    done = subprocess.run(command, cwd=metal_platform.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout
