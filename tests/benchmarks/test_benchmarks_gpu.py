"""The command for a machine with a GPU: its parts on the CPU, and all of it interpreted."""

import dataclasses
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_checks, gpu_inputs, gpu_kernels, gpu_model, gpu_timing, report
from pallas_kernels.quantized_matmul import FORMATS, unpack
from realm_jax import gguf, models
from realm_jax.gguf import GGMLType


def test_a_header_is_read_back(tmp_path: Path) -> None:
    gpu_model.write_header(tmp_path / "header.gguf", gpu_model.LLAMA_3_8B)
    with gguf.open(tmp_path / "header.gguf", header_only=True) as file:
        config = models.config_of(file)
        kinds = [raw.ggml_type for raw in file.tensors.values() if len(raw.shape) > 1]
        stored = sum(raw.nbytes for raw in file.tensors.values())
        built = models.build(file, dtype=jnp.bfloat16, implementation="triton", abstract=True)
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (32, 4096, 128256)
    # v and down of half of the layers, and the head.
    assert kinds.count(GGMLType.Q6_K) == 2 * 16 + 1 and kinds.count(GGMLType.Q4_K) == 7 * 32 + 2 - 33
    assert 4.9e9 < stored < 5.0e9
    assert len(built.layers) == 32


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "Q4_K" else pytest.mark.slow) for k in FORMATS])
def test_random_weights_are_finite_and_repeat_their_first_rows(kind: str) -> None:
    shape = (2 * gpu_inputs.BASE_ROWS + 32, 512)
    weight = gpu_inputs.random_weight(kind, shape, "triton")
    found = np.asarray(unpack(weight.stored, kind, shape, "triton"))
    assert found.shape == shape and np.isfinite(found).all() and found[:128].std() > 0
    np.testing.assert_array_equal(found, found[np.arange(len(found)) % gpu_inputs.BASE_ROWS])


def test_a_format_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="format must be one of .*, got TQ1_0"):
        gpu_inputs.random_blocks("TQ1_0", 1, 256)


def test_a_deviation_beyond_its_bound_is_seen() -> None:
    exact, bound = np.ones((2, 3)), np.full((2, 3), 0.1)
    assert gpu_checks._worst(exact + 0.05, exact, bound) == pytest.approx(0.5)
    for wrong in (1.2, math.nan):
        found = exact.copy()
        found[1, 2] = wrong
        assert not gpu_checks.Check(name="", error=gpu_checks._worst(found, exact, bound)).ok
    assert not gpu_checks.Check(name="", failure="refused").ok


def test_what_fails_is_a_result() -> None:
    case = next(case for case in gpu_checks.all_cases(small=True) if "odd channels" in case.name)
    late = gpu_checks.run_checks("triton", [case], interpret=True, deadline=0.0)
    assert [check.failure for check in late] == ["no time was left"]
    broken = dataclasses.replace(case, window=0)  # type: ignore[type-var]
    (check,) = gpu_checks.run_checks("triton", [broken], interpret=True, deadline=time.monotonic() + 60)
    assert "window must be at least 1" in check.failure and not check.ok


def test_a_chain_makes_every_call() -> None:
    calls: list[int] = []

    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return x @ w

    effort = gpu_timing.Effort(seconds=6e-3, samples=3, copies=2)
    timing = gpu_timing.time_calls(multiply, jnp.ones((2, 8)), jnp.ones((8, 4)), least=1e-3, effort=effort)
    jax.effects_barrier()
    assert (timing.calls, timing.copies, timing.resident) == (6, 2, True)
    assert len(timing.seconds.values) == 3 and min(timing.seconds.values) > 0
    assert len(calls) == (1 + 3) * 6  # a chain to warm up


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_torch_may_be_absent() -> None:
    assert gpu_kernels.torch_times(gpu_kernels.ATTENTIONS, device="cpu", seconds=60) == {
        "failure": "torch is not installed"
    }


def test_the_plan_for_a_device_holds_every_case() -> None:
    plan = gpu.device_plan("triton")
    assert len(plan.checks) == len(gpu_checks.all_cases(small=False)) and plan.implementation == "triton"
    # Peers compute the same in all that is timed.
    assert all(gpu_kernels._comparable(case) for case in plan.attentions)


@pytest.mark.slow
def test_everything_runs_interpreted() -> None:
    parts: dict[str, Any] = {}
    plan = gpu.interpreted_plan("triton")
    gpu.measure(plan, 600, parts)
    assert len(parts["checks"]) == len(plan.checks) and all(check["ok"] for check in parts["checks"])
    for row in (*parts["matmuls"], *parts["attentions"]):
        assert not row["failures"] and len(row["times"]) == 2
    assert [test["test"] for test in parts["model"]["tests"]] == ["pp16", "tg2"]
    drawn = gpu.tables(parts)
    assert "Right: 5 of 5 cases." in drawn and "tiny Q4_K_M" in drawn
    json.loads(report.as_json(parts))
