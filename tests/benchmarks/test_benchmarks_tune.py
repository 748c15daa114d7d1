"""The command that tunes: its search among candidates, what is worth an entry, and all of it interpreted."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tune
from benchmarks.gpu_timing import Effort
from benchmarks.tune_compiled import resident_blocks, scheduled_seconds, trial_of
from benchmarks.tune_search import Trial, descend, entry_for, limited
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul.cases import MatmulCase
from pallas_kernels.quantized_matmul.config import DecodeConfig, TpuConfig
from pallas_kernels.tuning import read_table
from realm_jax.plan.devices import DEVICES

CASE = MatmulCase(kind="Q4_K", tokens=8, rows=4096, columns=4096)


def cost_of(config: DecodeConfig) -> float:
    """64 rows of 2 warps are best, and 64 rows of 4 warps worse than what the search begins with."""
    return abs(config.rows - 64) + 10 * abs(config.warps - 2) + 5 * abs(config.stages - 4) + abs(config.groups - 8) + 8


def attempt(configs: Sequence[Any]) -> list[Trial]:
    return [Trial(cost=cost_of(config), facts={"cost": cost_of(config)}) for config in configs]


def test_a_search_changes_one_field_after_the_other() -> None:
    search = CASE.search("triton")
    best = descend(search, attempt)
    assert best == min(search.candidates, key=cost_of)
    assert (best.rows, best.warps) == (64, 2)


def test_a_search_passes_what_cannot_be_used() -> None:
    """128 rows cost least but take too much memory; with fewer groups in a trip they fit."""

    def tight(configs: Sequence[Any]) -> list[Trial]:
        return [
            Trial(cost=1 / c.rows + 1 / c.groups / 1e4, failure="too large" if c.rows * c.groups > 512 else "")
            for c in configs
        ]

    best = descend(limited(CASE.search("triton"), ("rows", "groups")), tight)
    assert (best.rows, best.groups) == (128, 4)


def test_an_entry_holds_what_differs_and_both_figures() -> None:
    search = CASE.search("triton")
    best = descend(search, attempt)
    entry = entry_for(search, best, attempt, gain=0.03, sizes=("tokens", "rows"))
    assert entry is not None
    assert (entry.config, entry.sizes) == ({"rows": 64}, {"tokens": 8, "rows": 4096})
    assert entry.facts == {"with this": {"cost": 8}, "heuristic": {"cost": 40}}
    assert entry_for(search, best, attempt, gain=0.9, sizes=()) is None
    assert entry_for(search, search.candidates[0], attempt, gain=0, sizes=()) is None
    failing = [Trial(cost=10), Trial(failure="refused")]
    assert entry_for(search, best, lambda _: failing, gain=0.03, sizes=()) is None


def test_what_is_measured_is_written_and_read_back(tmp_path: Path) -> None:
    """Interpreted on tiny shapes: times mean nothing, but both kernels run with another configuration."""
    cases = [
        MatmulCase(kind="Q4_0", tokens=1, rows=32, columns=256),
        AttentionCase(label="decode", heads=2, kv_heads=1, head_dim=16, block_size=32, sequences=((30, 1),)),
    ]
    for case in cases:
        search = case.search("triton")
        assert search is not None
        few = dataclasses.replace(search, candidates=search.candidates[:2])
        effort = Effort(seconds=0, samples=1, copies=1)
        times = tune.timer(case, few, "triton", effort, deadline=time.monotonic() + 60, interpret=True)
        trials = times(few.candidates[1:])
        assert [trial.failure for trial in trials] == [""]
        assert all(trial.cost > 0 and trial.facts["microseconds"] > 0 for trial in trials)
    search = CASE.search("triton")
    entry = entry_for(search, descend(search, attempt), attempt, gain=0.03, sizes=("tokens",))
    assert entry is not None
    tune.save(tmp_path / "folder" / "x.json", "a kind", "measured", [entry])
    table = read_table(tmp_path / "folder" / "x.json")
    assert (table.device_kind, table.entries) == ("a kind", (entry,))


def test_nothing_begins_after_the_deadline() -> None:
    search = CASE.search("triton")
    assert not list(tune.measured([CASE], "triton", Effort(), deadline=0))
    small = MatmulCase(kind="Q4_0", tokens=1, rows=32, columns=256)
    effort = Effort(seconds=0, samples=1, copies=1)
    times = tune.timer(small, small.search("triton"), "triton", effort, deadline=0, interpret=True)
    assert times([small.search("triton").candidates[1]])[0].failure == "no time was left"
    assert search.candidates


def test_a_model_gives_the_shapes_of_its_matrices() -> None:
    path = Path(__file__).parents[1] / "data" / "tiny" / "gpt_oss_mxfp4.gguf"
    names = [case.name for case in tune.cases_of(path, "")]
    assert len(names) == len(set(names))
    assert all(case.name.startswith("matmul Q4_K 1x") for case in tune.cases_of(None, "Q4_K 1x"))


@pytest.mark.parametrize("name", ["h100", "a100"])
def test_registers_and_shared_memory_bound_what_is_in_flight(name: str) -> None:
    """64 threads of 64 registers: 16 such blocks by registers; of 20 KiB each, 11 or 8 by memory."""
    device, config, program = DEVICES[name], DecodeConfig(), CASE.program("triton")
    facts = {"registers": 64, "memory": 19 * 1024, "spills": 0, "per_code": 4.0}
    blocks = {"h100": 11, "a100": 8}[name]
    assert resident_blocks(device, config, facts) == blocks
    trial = trial_of(device, config, program, facts)
    assert (trial.cost, trial.facts["bytes_in_flight"]) == (4.0, blocks * 19 * 1024 * 3 // 4)
    assert trial_of(device, config, program, {**facts, "spills": 8}).failure == "registers spill"
    assert "bytes are on their way" in trial_of(device, config, program, {**facts, "memory": 256}).failure
    assert "fewer than 8 warps" in trial_of(device, config, program, {**facts, "memory": 60 * 1024}).failure


def test_a_tpu_waits_for_its_first_block_and_then_for_the_slower() -> None:
    """Eight rows of activations by 4,096 x 4,096 weights in blocks of 512 x 2,048, at four codes a bundle or more."""
    device, program = DEVICES["v5e"], CASE.program("tpu")
    config = TpuConfig(tokens=8, rows=512, columns=2048)
    stored = sum(array.size * array.dtype.itemsize for array in program.operands[1])
    steps = 4096 * 4096 // (512 * 2048)
    copy = (stored / steps + 2 * 8 * 2048) / 819e9
    endless = scheduled_seconds(device, config, program, 1e12)
    assert endless == pytest.approx((steps + 1) * copy)
    slow = scheduled_seconds(device, config, program, 4.0)
    assert slow == pytest.approx(copy + 4096 * 4096 / 4 / device.clock)
    assert device.clock == pytest.approx(1.5e9, rel=0.01)
    with pytest.raises(ValueError, match="not for v6e"):
        scheduled_seconds(DEVICES["v6e"], config, program, 4.0)


def test_a_search_may_be_limited_to_some_fields() -> None:
    search = limited(CASE.search("triton"), ("rows",))
    assert {(c.warps, c.stages, c.groups) for c in search.candidates} == {(2, 4, 8)}
    assert [c.rows for c in search.candidates] == [32, 64, 128]
    assert limited(CASE.search("triton"), ()).candidates == CASE.search("triton").candidates
