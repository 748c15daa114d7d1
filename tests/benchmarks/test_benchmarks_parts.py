"""What the benchmarks are made of: samples, tables, and workers that answer line by line."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import processes, report
from benchmarks.samples import Samples, timed
from benchmarks.worker import Worker, WorkerError
from realm_jax.cli.bench_measure import Case

ROOT = Path(__file__).parents[2]


def test_samples_have_a_median_and_a_spread() -> None:
    samples = Samples(unit="us", values=(5.0, 1.0, 3.0, 2.0, 4.0))
    assert samples.median == 3
    assert samples.spread == pytest.approx((1.4, 4.6))
    assert str(samples) == "3.00 (1.40-4.60)"
    assert Samples(unit="s", values=(0.25,)).spread == (0.25, 0.25)
    assert samples.as_json()["values"] == [5, 1, 3, 2, 4]
    assert "values" not in Samples(unit="s", values=(1.0,) * 50).as_json()


def test_warm_up_calls_are_not_counted() -> None:
    calls: list[str] = []
    seconds = timed(lambda: calls.append("work"), 3, warm_up=2, between=lambda: calls.append("between"))
    assert len(seconds) == 3 and min(seconds) >= 0
    assert calls == ["between", "work"] * 5


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    drawn = report.table(("name", "n"), [("a", 1), ("long name", Samples(unit="s", values=(2.0,)))])
    assert drawn.splitlines() == [
        "| name      |                n |",
        "| --------- | ---------------: |",
        "| a         |                1 |",
        "| long name | 2.00 (2.00-2.00) |",
    ]


def test_json_holds_samples_and_hides_folders() -> None:
    written = json.loads(report.as_json({"model": Path("/somewhere/a.gguf"), "t": Samples(unit="s", values=(1.0,))}))
    assert written["model"] == "a.gguf" and written["t"]["median"] == 1


def test_a_process_reports_its_first_output_and_its_memory() -> None:
    code = "import time; time.sleep(0.3); block = bytes(2**24 * [1]); print('x', flush=True); time.sleep(0.3)"
    done = processes.run([sys.executable, "-c", code])
    assert done.output == b"x\n" and done.first_output > 0.3
    # The list takes 128 MiB and the bytes 16 more; the interpreter itself takes about 10, this process far more.
    if sys.platform == "linux":
        assert done.peak_resident is not None and 144 * 2**20 < done.peak_resident < 184 * 2**20
    with pytest.raises(RuntimeError, match=r"exit code 3: no reason"):
        processes.run([sys.executable, "-c", "import sys; sys.stderr.write('no reason'); sys.exit(3)"])


@pytest.fixture
def workers_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def prefill(tokens: int) -> Case:
    return Case(kind="pp", tokens=tokens, depth=0, batch=1)


def test_a_worker_answers_case_by_case(workers_in_reach: None) -> None:
    with Worker("fixed", "fixed_worker", ["one", "two"]) as worker:
        assert worker.facts["arguments"] == ["one", "two"]
        assert worker.speeds(prefill(7), 2) == [7, 7]
        with pytest.raises(WorkerError, match="fixed: 13 tokens cannot be computed"):
            worker.speeds(prefill(13), 1)
        assert worker.speeds(prefill(8), 1) == [8]


def test_a_worker_that_ends_is_an_error_of_its_own(workers_in_reach: None) -> None:
    with Worker("fixed", "fixed_worker", []) as worker, pytest.raises(RuntimeError, match="ended with exit code 3"):
        worker.speeds(prefill(99), 1)
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        Worker("absent", "no_such_worker", [])
