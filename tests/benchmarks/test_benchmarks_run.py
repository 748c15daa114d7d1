"""Every benchmark runs on a tiny model and reports what it promises."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_chat

import cpu_kernels
from benchmarks import matvec, null_step, overlap, quality, report, speed, startup, window
from benchmarks.environment import describe, environment
from realm_jax.cli.bench_measure import Case

CASES = (Case(kind="pp", tokens=16, depth=0, batch=1), Case(kind="tg", tokens=4, depth=16, batch=3))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
def test_the_null_step_is_taken_apart(tiny: Path) -> None:
    result = null_step.measure(tiny, batch=2, steps=5)
    assert result["leaves"] == tiny_chat.LAYERS * (7 + 2 + 1) + 3
    assert result["bucket"] == {"tokens": 2, "sequences": 2, "pages": 4, "rows": 2}
    for state in ("warm", "cold"):
        assert list(result[state]) == ["leaves only", "program", "runner.step", "engine.step"]
        assert all(samples.median > 0 and len(samples.values) == 5 for samples in result[state].values())
    drawn = null_step.tables([result])
    assert "engine.step" in drawn and "pack the batch" in drawn
    json.loads(report.as_json(result))


@pytest.mark.parametrize(("decode_steps", "values", "penalty"), [(1, 32, 1.0), (None, 2, 1.1)])
def test_a_step_is_waiting_and_the_host_s_work(
    tiny: Path, decode_steps: int | None, values: int, penalty: float
) -> None:
    result = overlap.measure(tiny, batch=2, decode_steps=decode_steps, steps=32, repetition_penalty=penalty)
    parts = [result[name].values for name in ("step", "waiting", "host", "host_cpu")]
    assert all(len(part) == values for part in parts) and 0 <= result["hidden_steps"] <= 1
    for step, waiting, host, computing in zip(*parts, strict=True):
        assert step == pytest.approx(waiting + host) and waiting >= 0 and host > 0 and computing > 0
    assert "steps hidden %" in overlap.tables([result])
    json.loads(report.as_json(result))


def test_quality_is_shown_beside_the_recorded_peer() -> None:
    measures = {"mean_kl_to_exact": 0.0015, "mean_abs_dlogprob_top32": 0.0686, "top1_agreement": 0.981}
    peer = {"mean_kl_to_exact": 0.0021, "mean_abs_dlogprob_top32": 0.0799, "top1_agreement": 0.974}
    facts = {"model": "m", "implementation": "cpu", "kv_cache": "float16", "positions": 7}
    drawn = quality.tables([{**facts, **measures, "peer": peer}])
    assert "0.00150 (0.00210)" in drawn and "98.10% (97.40%)" in drawn
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    np.testing.assert_allclose(quality._log_softmax(logits), np.log([[0.25, 0.75]]), atol=1e-7)


def test_steps_beyond_the_context_are_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match="do not fit into a context of 256"):
        null_step.DecodingModel(tiny, batch=1, steps=1000)


def test_starting_is_timed_step_by_step(tiny: Path) -> None:
    result = startup.measure(tiny, repetitions=1)
    assert result["bytes"]["held"] <= 1.10 * result["bytes"]["tensors"]
    if sys.platform == "linux":
        assert result["bytes"]["peak_loaded"] > result["bytes"]["held"] + result["bytes"]["cache"]
    assert result["process_to_loaded"].median > result["import_jax"].median + result["load"].median
    assert result["first_token"]["empty"].median > result["import_jax"].median
    drawn = startup.tables([result])
    assert "opening the file" in drawn and "warm compilation cache" in drawn
    json.loads(report.as_json(result))


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
def test_one_row_products_are_measured_beside_reading_alone() -> None:
    result = matvec.measure(formats=("Q4_0", "IQ2_XS"), size=2**18, repetitions=3)
    for case, bits in zip(result["formats"].values(), (4.5, 4.625), strict=True):
        assert case["bits"] == bits and case["rows"] % 16 == 0
        assert case["rows"] * matvec.COLUMNS * bits / 8 == pytest.approx(2**18, rel=0.2)
        assert all(len(case[name].values) == 3 and case[name].median > 0 for name in ("read", "product", "share"))
    drawn = matvec.tables([result])
    assert "One row of 4096" in drawn and "IQ2_XS" in drawn
    json.loads(report.as_json(result))


def test_speed_without_a_peer(tiny: Path) -> None:
    result = speed.measure(tiny, cases=CASES, rounds=2, runs=1, peer=None)
    assert [(case["test"], case["depth"], case["batch"]) for case in result["cases"]] == [
        ("pp16", 0, 1),
        ("tg4", 16, 3),
    ]
    for case in result["cases"]:
        assert len(case["tokens_per_second"]["realm xla"].values) == 2 and not case["ratios"]
    assert "realm xla, tokens/s" in speed.tables([result])
    json.loads(report.as_json(result))


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the bench extra")
def test_speed_beside_the_peer(tiny: Path) -> None:
    result = speed.measure(tiny, cases=CASES, rounds=2, runs=2)
    for case in result["cases"]:
        assert not case["errors"] and case["ratios"]["realm xla"] > 0
        assert [len(samples.values) for samples in case["tokens_per_second"].values()] == [4, 4]
    assert "realm xla / llama.cpp" in speed.tables([result])


def test_windows_are_measured_beside_the_resident_model(tiny: Path) -> None:
    result = window.measure_windows(tiny, implementation="xla", shares=(1.5, 0.01), tokens=2, rounds=1)
    resident, whole = result["windows"]
    assert (resident["share"], whole["share"]) == (None, 1.5) and not whole["streamed_bytes"]
    assert "must be at least" in result["refused"][0.01]
    drawn = window.tables([result])
    assert "all resident" in drawn and "150%" in drawn and "1%: max_weight_memory must be" in drawn
    json.loads(report.as_json(result))


def test_a_peer_that_is_not_there_is_named() -> None:
    speed.check_peer(None)
    with pytest.raises(ValueError, match=r"must have llama-cpp-python; run `make bench`"):
        speed.check_peer("false")


def test_the_environment_names_cpu_and_versions() -> None:
    facts = environment()
    text = describe(facts)
    assert facts["cpu"]["name"] in text and f"python {sys.version.split()[0]}" in text and "jaxlib" in text
    json.loads(report.as_json(facts))
