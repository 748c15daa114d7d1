"""Scores the first requests of a task with llama-cpp-python's server, and prints log-likelihoods and seconds.

The server runs on the loopback interface and is asked as lm-evaluation-harness's model `gguf` asks it: one request at a
time, each with its whole text, to be echoed with the log-probabilities of its tokens and one token more.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.questions_program import Assignment, answer
from realm_jax.cli.threads import available_cpus

_START_SECONDS, _ANSWER_SECONDS = 120, 600
_TOP = 10  # alternatives of each token that the harness asks for


@contextlib.contextmanager
def running_server(model: Path) -> Iterator[str]:
    """The address of a server that is ready; RuntimeError where it ends or does not come up."""
    port = _free_port()
    settings = {"model": model, "host": "127.0.0.1", "port": port, "n_ctx": 1024, "logits_all": True}
    settings |= {
        "flash_attn": True,
        "n_threads": available_cpus(),
        "n_threads_batch": available_cpus(),
        "verbose": False,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *words], stdout=sys.stderr)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, f"{address}/v1/models")
        yield address
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama_cpp.server ended with exit code {process.returncode}; stderr has its message")
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"llama_cpp.server must answer within {_START_SECONDS} s; stderr has its messages")


def logprob(address: str, context: str, continuation: str, *, begin: str = "") -> float:
    """What the server says of a continuation, of a text that starts with the model's begin token if that is `begin`."""
    text = context + continuation
    asked = {"prompt": text, "logprobs": _TOP, "temperature": 0.0, "max_tokens": 1, "echo": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
        answer: Mapping[str, Any] = json.load(response)
    # The begin token is not among the echoed ones, and its characters do not count.
    return continuation_logprob(answer, len(context) - len(begin), len(text) - len(begin))


def continuation_logprob(answer: Mapping[str, Any], start: int, stop: int) -> float:
    """The sum over the echoed tokens that begin at the characters `start` to `stop` of the text that was sent.

    `answer` is a completion as in OpenAI's API with `echo`; what was generated lies beyond the text. ValueError where
    log-probabilities are missing, as from servers that ignore `echo`.
    """
    logprobs = answer["choices"][0].get("logprobs") or {}
    offsets, values = logprobs.get("text_offset"), logprobs.get("token_logprobs")
    if not offsets or not values:
        raise ValueError("the server must echo the log-probabilities of a prompt's tokens; this one sent none")
    wanted = [value for offset, value in zip(offsets, values, strict=True) if start <= offset < stop]
    if not wanted or None in wanted:
        raise ValueError(f"scored tokens must begin at characters {start} to {stop}, got offsets {offsets}")
    return sum(wanted)


def main() -> None:
    """Start the server, send one short request to warm up, then those of the task, and print JSON."""
    given = Assignment.parse(__doc__)
    requests = given.task().requests[: given.requests]
    with running_server(given.model) as address:
        logprob(address, "Question:", " Why?")
        start = time.perf_counter()
        logprobs = [logprob(address, *request, begin=given.begin) for request in requests]
        seconds = time.perf_counter() - start
    answer(sys.stdout, seconds=seconds, logprobs=logprobs, version=importlib.metadata.version("llama-cpp-python"))


if __name__ == "__main__":
    main()
