"""Ranks configurations for a device that is not here by what they compile to, and prints a table's entries as JSON.

usage: python -m benchmarks.tune_compiled TARGET [--match TEXT] [--fields NAME ...]

A process per target, with the folder of the deviceless compilation's programs, `tests/aot`, on the path: `tune` starts
it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from realm_jax.plan.devices import DEVICES, Device

GAIN = 0.05
"""The share by which a loop must be shorter: fewer instructions do not make memory faster."""

# What every multiprocessor must have on the way to keep a GPU's memory busy: its bandwidth times a latency of 600 ns.
_LATENCY = 600e-9
# Warps of a multiprocessor: two for each of its four schedulers, one of which has its turn while the other waits.
_FEWEST_WARPS = 8


def main() -> None:
    """Prepare the environment before anything imports jax, then compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=DEVICES)
    parser.add_argument("--match", default="")
    parser.add_argument("--fields", nargs="*", default=[])
    options = parser.parse_args()
    device = DEVICES[options.target]
    with tempfile.TemporaryDirectory() as folder:
        from aot_targets import prepare

        prepare(device, Path(folder))
        from benchmarks.tune_search import descend, entry_for, limited
        from pallas_kernels.quantized_matmul.cases import CASES

        attempt_with = _compiler(device, Path(folder))
        # A CUDA loop's code does not depend on how many rows and columns there are; a TPU may take all columns at once.
        sizes = ("tokens", "columns") if device.platform == "tpu" else ("tokens",)
        for case in CASES:
            if case.rows == case.columns == 4096 and options.match in case.name:
                if device.backend not in case.backends or case.program(device.backend).loop_codes is None:
                    continue
                search = limited(case.search(device.backend), options.fields)
                attempt = attempt_with(search)
                best = descend(search, attempt)
                entry = entry_for(search, best, attempt, gain=GAIN, sizes=sizes)
                usual = attempt(search.candidates[:1])[0]
                print(f"{case.name}: heuristic {usual.facts or usual.failure}", file=sys.stderr, flush=True)
                if entry is not None:
                    print(json.dumps(dataclasses.asdict(entry)), flush=True)


def _compiler(device: Device, dump: Path) -> Callable[[Any], Callable[[Sequence[Any]], list[Any]]]:
    """From a search to what compiles its configurations, each once."""
    from aot_kernels import program_facts

    from benchmarks.tune_search import Trial
    from realm_jax.plan.programs import device_mesh

    mesh = device_mesh(device)

    def attempt_with(search: Any) -> Callable[[Sequence[Any]], list[Any]]:
        found: dict[Any, Trial] = {}

        def compile_one(config: Any) -> Trial:
            program = search.program(config)
            try:
                facts = program_facts(device, mesh, dump, program)[1]
            except Exception as error:  # what a compiler refuses is no choice
                return Trial(failure=" ".join(str(error).split())[:200])
            return trial_of(device, config, program, facts)

        def attempt(configs: Sequence[Any]) -> list[Trial]:
            for config in configs:
                if config not in found:
                    found[config] = compile_one(config)
            return [found[config] for config in configs]

        return attempt

    return attempt_with


def trial_of(device: Device, config: Any, program: Any, facts: Mapping[str, Any]) -> Any:
    """What compiled code tells of its speed: instructions of a CUDA loop for a code, or a TPU's schedule in time."""
    from benchmarks.tune_search import Trial

    if device.platform == "tpu":
        seconds = scheduled_seconds(device, config, program, facts["per_code"])
        shown = {
            "microseconds": round(1e6 * seconds, 2),
            "codes_per_bundle": round(facts["per_code"], 1),
            "moves_of_registers": facts["spills"],
            "vmem_bytes": facts["memory"],
        }
        return Trial(cost=seconds, facts=shown)
    blocks = resident_blocks(device, config, facts)
    shown = {
        "instructions_per_code": round(facts["per_code"], 2),
        "registers": facts["registers"],
        "spilled_bytes": facts["spills"],
        "shared_bytes": facts["memory"],
        "warps_of_multiprocessor": blocks * config.warps,
        "bytes_in_flight": blocks * facts["memory"] * (config.stages - 1) // config.stages,
    }
    if facts["spills"]:
        return Trial(facts=shown, failure="registers spill")
    return Trial(cost=facts["per_code"], facts=shown, failure=_too_few(device, shown))


def scheduled_seconds(device: Device, config: Any, program: Any, codes_per_bundle: float) -> float:
    """The time of a product on a TPU if nothing but its schedule and its memory took any.

    A step of the grid takes the longer of its bundles, one a cycle, and of the copies for the next one; the first step
    waits for its own, which is what large blocks cost.

    Raises:
        ValueError: a device whose clock is not known.
    """
    if not device.clock:
        raise ValueError(f"bundles are comparable with bytes only where the clock is known, not for {device.name}")
    x, stored = program.operands
    weights = sum(math.prod(array.shape) * array.dtype.itemsize for array in stored)
    blocks = program.codes / program.loop_codes
    copied = weights / blocks + 2 * config.tokens * config.columns
    steps = blocks * math.ceil(x.shape[0] / config.tokens)
    copy = copied / device.bandwidth
    return copy + steps * max(program.loop_codes / codes_per_bundle / device.clock, copy)


def _too_few(device: Device, shown: Mapping[str, Any]) -> str:
    """Why a multiprocessor would wait for memory or for results, which a shorter loop does not make up for."""
    wanted = device.bandwidth * _LATENCY / _number(device, "core_count")
    if shown["warps_of_multiprocessor"] < _FEWEST_WARPS:
        return f"a multiprocessor holds fewer than {_FEWEST_WARPS} warps"
    if shown["bytes_in_flight"] < wanted:
        return f"fewer than {wanted:.0f} bytes are on their way to a multiprocessor"
    return ""


def resident_blocks(device: Device, config: Any, facts: Mapping[str, Any]) -> int:
    """How many blocks a multiprocessor's registers, shared memory and threads hold."""
    threads = 32 * config.warps
    # Threads are given 8 registers at a time, and a block takes a KiB of shared memory besides its own.
    by_registers = _number(device, "registers_per_core_limit") // (threads * 8 * -(-facts["registers"] // 8))
    by_memory = _number(device, "shared_memory_per_core") // (facts["memory"] + 1024)
    return min(by_registers, by_memory, _number(device, "threads_per_core_limit") // threads, 32)


def _number(device: Device, name: str) -> int:
    found = re.search(rf"{name}: (\d+)", device.description)
    assert found, name
    return int(found[1])


if __name__ == "__main__":
    main()
