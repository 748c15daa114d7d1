"""A batch job on a Ray cluster of this machine answers every line once, whoever is killed, as the local job does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest
import tiny_chat

from realm_jax import LLM
from realm_jax.jobs import run_batch

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
REALM = [sys.executable, "-c", "import sys; from realm_jax.cli import main; sys.exit(main())", "batch"]
LINES = 300
PATIENCE = 240  # seconds; Ray and two models start on a machine that others use
WORKER = "ray::MapWorker"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Quantised, so that native kernels run: a request's bits do not depend on which others run beside it.
    matrices = gguf.GGMLQuantizationType.Q8_0
    return tiny_chat.write(tmp_path_factory.mktemp("model") / "tiny.gguf", matrices=matrices)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(5)
    lines = []
    for number in range(LINES):
        body = {"prompt": f"hi {number}", "max_tokens": rng.randrange(60, 180), "ignore_eos": True}
        lines.append(json.dumps({"custom_id": f"r{number}", "url": "/v1/completions", "body": body}))
    lines += ["broken", lines[3], json.dumps({"custom_id": "no", "url": "/v1/completions", "body": {"prompt": 1}})]
    rng.shuffle(lines)
    path = tmp_path_factory.mktemp("requests") / "in.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def expected(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    target = tmp_path_factory.mktemp("local") / "out.jsonl"
    run_batch(LLM(model, max_num_seqs=4, quiet=True), source, target)
    return answers_of(target)


def answers_of(target: Path) -> list[dict[str, Any]]:
    """Every answer but for the second in which it was given, in the order of the lines."""
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    for answer in answers:
        if answer["response"]:
            del answer["response"]["body"]["created"]
    return sorted(answers, key=lambda answer: int(answer["id"].removeprefix("line-")))


@contextmanager
def driver(source: Path, target: Path, model: Path | str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command with two workers of one thread; whatever the test left running is ended with it."""
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "REALM_CACHE_DIR": str(source.parent / "cache")}
    own["RAY_worker_niceness"] = "0"  # else what runs beside the test may hold the workers up for minutes
    command = [*REALM, str(source), str(target), "--model", str(model), "--max-num-seqs", "4", "--ray"]
    command += ["--ray-workers", "2", "--threads", "1", *words]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**os.environ, **own}, **pipes)
    try:
        yield process
    finally:
        left = processes_of(process.pid)
        process.kill()
        for other in left:
            if other.is_running():
                other.kill()
        process.communicate()


def processes_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(pid: int) -> set[int]:
    found = set()
    for process in processes_of(pid):
        try:
            if " ".join(process.cmdline()).startswith(WORKER):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def until(process: subprocess.Popen[str], reached: Callable[[], Any], what: str) -> Any:
    """What `reached` returns once it is anything."""
    deadline = time.monotonic() + PATIENCE
    while not (found := reached()):
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"no {what} in {PATIENCE} s"
        time.sleep(0.02)
    return found


def answered(target: Path) -> int:
    return target.read_bytes().count(b"\n") if target.exists() else 0


def test_a_killed_worker_loses_and_repeats_nothing(
    model: Path, source: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    with driver(source, target, model, "--json") as process:
        until(process, lambda: answered(target) >= 20, "answers")
        before = workers_of(process.pid)
        assert len(before) == 2 and answered(target) < LINES
        os.kill(min(before), signal.SIGKILL)
        until(process, lambda: workers_of(process.pid) - before, "worker in place of the killed one")
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert json.loads(out) == {"answered": LINES, "failed": 3, "before": 0}
    assert answers_of(target) == expected


def test_a_killed_driver_takes_its_cluster_along_and_goes_on_when_run_again(
    model: Path, source: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    with driver(source, target, model) as process:
        until(process, lambda: answered(target) >= 20, "answers")
        cluster = processes_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(cluster, timeout=PATIENCE)  # Ray's own agents look for their parent now and then
        assert cluster and not alive
    whole = answered(target)
    kept = target.read_bytes()[: target.read_bytes().rfind(b"\n") + 1]
    assert 20 <= whole < LINES
    with driver(source, target, model, "--json") as process:
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    counts = json.loads(out)
    assert counts["answered"] + counts["failed"] == LINES + 3 - whole and counts["before"] == whole
    assert target.read_bytes().startswith(kept)
    assert answers_of(target) == expected


def test_what_no_worker_can_load_ends_the_job_in_a_sentence(model: Path, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with driver(source, target, model, "--implementation", "abacus") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and errors.count("\n") == 1
    assert f"every machine of the cluster must be able to load {model}" in errors and "abacus" in errors


def test_a_cluster_that_is_not_there_is_said(model: Path, source: Path, tmp_path: Path) -> None:
    with driver(source, tmp_path / "out.jsonl", model, "--ray-address", "127.0.0.1:1") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and errors.count("\n") == 1
    assert errors.startswith("realm: a Ray cluster must be reachable at 127.0.0.1:1, and is not (")
