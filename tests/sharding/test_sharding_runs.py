"""Models on several devices: eight in one process, and two in each of two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_chat

import cpu_kernels
from realm_jax import LLM, SamplingParams

HERE = Path(__file__).parent


def environment(devices: int) -> dict[str, str]:
    """The environment in which JAX makes several devices of the host, which it decides when it starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def test_eight_devices_compute_what_one_does() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "on_eight_devices.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("implementation", ["xla", "cpu", pytest.param("tpu_interpreted", marks=pytest.mark.slow)])
def test_two_processes_generate_what_one_does(tmp_path: Path, implementation: str) -> None:
    """Drawn tokens too: every process draws the same ones."""
    if implementation == "cpu" and not cpu_kernels.is_available():
        pytest.skip(str(cpu_kernels.why_unavailable()))
    path = tiny_chat.write(tmp_path / "tiny.gguf", matrices=gguf.GGMLQuantizationType.Q4_0)
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(HERE / "one_of_two_processes.py")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(2)}
    running = [
        subprocess.Popen([*command, str(rank), coordinator, str(path), implementation], **pipes) for rank in (0, 1)
    ]
    printed = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    llm = LLM(path, implementation=implementation, max_model_len=64, max_num_seqs=2, block_size=16, quiet=True)
    prompts: list[Any] = [{"prompt_token_ids": [1, 2, 3]}, {"prompt_token_ids": list(range(30))}]
    params = SamplingParams(max_tokens=5, temperature=0.8, seed=1, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    assert [json.loads(out.splitlines()[-1]) for out, _ in printed] == [expected, expected]
