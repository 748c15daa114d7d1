"""Whole steps compile for accelerators that are not here, with weights quantised and caches updated in place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TINY = HERE.parent / "data" / "tiny"


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "a100", "v5e"])
@pytest.mark.parametrize("model", ["llama", "gemma3", "gpt_oss_mxfp4"])
def test_a_tiny_model_compiles(target: str, model: str) -> None:
    check(target, TINY / f"{model}.gguf")


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_smollm2_compiles(target: str, smollm2_path: Path) -> None:
    check(target, smollm2_path)


def check(target: str, path: Path) -> None:
    command = [sys.executable, str(HERE / "compile_step.py"), target, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    assert set(steps) == {"decode", "prefill"}
    for step in steps.values():
        assert step["aliased_bytes"] >= step["cache_bytes"]
        # Weights stay as the file stores them; layouts of an accelerator pad small arrays.
        assert step["argument_bytes"] < 1.5 * (step["weight_bytes"] + step["cache_bytes"]) + 4e6
