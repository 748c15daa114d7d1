"""One command that finds faster block sizes for the Pallas kernels and writes them into a table.

usage: python -m benchmarks.tune [--seconds N] [--model FILE.gguf] [--match TEXT] [--fields NAME ...] [--output FILE]
       python -m benchmarks.tune --target h100|a100|v5e [--match TEXT] [--fields NAME ...] [--output FILE]

On a machine with a GPU or a TPU candidates are timed in turns, and the table lies where the kernels look for it, in the
folder `pallas_kernels.tuning.user_folder`. With `--target` none of it is measured: what they compile to is compared,
with the plug-ins of the extra `aot`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import ROOT
from benchmarks.gpu_inputs import attention_inputs, random_weight
from benchmarks.gpu_timing import Chain, Effort, chain_of
from benchmarks.tune_search import Trial, Try, descend, entry_for, limited
from pallas_kernels.case import Backend, KernelCase, Search
from pallas_kernels.paged_attention import cases as attention_cases
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul import FORMATS
from pallas_kernels.quantized_matmul import cases as matmul_cases
from pallas_kernels.quantized_matmul.cases import MatmulCase
from pallas_kernels.tuning import Entry, Table, device_kind, user_folder, write_table
from realm_jax import gguf

GAIN = 0.03
"""The share of its time by which a configuration must be faster; medians of alternating runs differ by less."""

_KINDS = {"h100": "NVIDIA H[12]00*", "a100": "NVIDIA A100*", "v5e": "TPU v5 lite*"}
# Bytes a second of a fast device: how many calls a chain has follows from it.
_BANDWIDTH = 3e12


def cases_of(model: Path | None, match: str) -> list[KernelCase]:
    """The kernels' own cases, or the products of a model's matrices with 1, 16 and 512 rows; those that match."""
    if model is None:
        cases: Sequence[KernelCase] = [*matmul_cases.CASES, *attention_cases.CASES]
    else:
        with gguf.open(model, header_only=True) as file:
            matrices = [t for t in file.tensors.values() if len(t.shape) == 2 and t.ggml_type.name in FORMATS]
        found = dict.fromkeys((tensor.ggml_type.name, *tensor.shape) for tensor in matrices)
        cases = [
            MatmulCase(kind=kind, tokens=tokens, rows=rows, columns=columns)
            for tokens in (1, 16, 512)
            for kind, rows, columns in found
        ]
    return [case for case in cases if match in case.name]


def measured(
    cases: Sequence[KernelCase], backend: Backend, effort: Effort, *, deadline: float, fields: Sequence[str] = ()
) -> Iterator[Entry]:
    """Entries for what is faster than the heuristic's configuration; no case begins after the deadline."""
    for case in cases:
        search = case.search(backend) if backend in case.backends else None
        if search is None:
            continue
        search = limited(search, fields)
        if time.monotonic() > deadline:
            return
        attempt = timer(case, search, backend, effort, deadline=deadline)
        entry = entry_for(search, descend(search, attempt), attempt, gain=GAIN, sizes=tuple(search.sizes))
        print(f"{case.name}: {'no better' if entry is None else dict(entry.config)}", file=sys.stderr, flush=True)
        if entry is not None:
            yield entry


def timer(
    case: KernelCase, search: Search, backend: Backend, effort: Effort, *, deadline: float, interpret: bool = False
) -> Try:
    """What times configurations of a case in turns, so that a clock that slows down slows all of them down."""
    x, operands = _inputs(case, backend)

    def build(config: Any) -> Chain | Trial:
        if time.monotonic() > deadline and config != search.candidates[0]:
            return Trial(failure="no time was left")
        program = search.program(config, interpret=interpret)
        assert program.bytes_moved is not None

        def call(x: jax.Array, operands: Any) -> jax.Array:
            return program.function(x, *operands)

        try:
            return chain_of(call, x, operands, least=program.bytes_moved / _BANDWIDTH, effort=effort)
        except Exception as error:  # what a compiler or a device refuses is no choice
            return Trial(failure=" ".join(str(error).split())[:200])

    def attempt(configs: Sequence[Any]) -> list[Trial]:
        built = [build(config) for config in configs]
        times: list[list[float]] = [[] for _ in built]
        for _ in range(effort.samples):
            for chain, seconds in zip(built, times, strict=True):
                if isinstance(chain, Chain):
                    seconds.append(chain.seconds())
        return [_trial(*pair) for pair in zip(built, times, strict=True)]

    return attempt


def _trial(chain: Chain | Trial, seconds: Sequence[float]) -> Trial:
    if isinstance(chain, Trial):
        return chain
    median = statistics.median(seconds)
    spread = [round(1e6 * t, 2) for t in (min(seconds), max(seconds))]
    return Trial(cost=median, facts={"microseconds": round(1e6 * median, 2), "from_to": spread})


def _inputs(case: KernelCase, backend: Backend) -> tuple[jax.Array, tuple[Any, ...]]:
    """The first operand of a case's program and the others, on the device."""
    if isinstance(case, AttentionCase):
        given = attention_inputs(case)
        return given.q, (given.pool, given.batch, given.sinks)
    assert isinstance(case, MatmulCase)
    x = jax.random.normal(jax.random.key(0), (case.tokens, case.columns), jnp.bfloat16)
    return x, (random_weight(case.kind, (case.rows, case.columns), backend).stored,)


def compiled(target: str, match: str, fields: Sequence[str]) -> Iterator[Entry]:
    """Entries for what compiles to clearly less for a device that is not here; RuntimeError where nothing compiles."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "aot")))
    command = [sys.executable, "-m", "benchmarks.tune_compiled", target, "--match", match, "--fields", *fields]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("{"):
                yield Entry(**json.loads(line))
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}; it needs the extra 'aot'")


def save(path: Path, kind: str, made: str, entries: Sequence[Entry]) -> None:
    """Write a table; without entries none, since that would hide the package's own."""
    if entries:
        versions = {"jax": jax.__version__}
        write_table(Table(path=path, device_kind=kind, made=made, versions=versions, entries=tuple(entries)))


def main() -> None:
    """Tune, and write the table anew after each entry, so that a run that is cut off leaves what it had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=_KINDS, help="compile for this device, which need not be here")
    parser.add_argument("--seconds", type=float, default=600, help="after which nothing is measured (default: 600)")
    parser.add_argument("--model", type=Path, help="tune for the shapes of this model's matrices")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--fields", nargs="*", default=[], help="only these fields of configurations are varied")
    parser.add_argument("--output", type=Path, help="the table; by default where the kernels, or the package, keep it")
    options = parser.parse_args()
    if options.target:
        kind, made = _KINDS[options.target], "compiled, not measured"
        path = options.output or Path("build/tables", f"{options.target}.json")
        found = compiled(options.target, options.match, options.fields)
    else:
        backend: Backend | None = {"gpu": "triton", "tpu": "tpu"}.get(jax.default_backend())  # type: ignore[assignment]
        if backend is None:
            raise RuntimeError(f"benchmarks.tune needs a GPU or a TPU, JAX has {jax.default_backend()!r}; try --target")
        kind, made = device_kind(), "measured: medians of alternating runs"
        path = options.output or user_folder() / f"{re.sub(r'[^a-z0-9]+', '-', kind.lower())}.json"
        deadline = time.monotonic() + options.seconds
        found = measured(
            cases_of(options.model, options.match), backend, Effort(), deadline=deadline, fields=options.fields
        )
    entries: list[Entry] = []
    for entry in found:
        entries.append(entry)
        save(path, kind, made, entries)
    print(f"{len(entries)} entries in {path}" if entries else "the heuristic's configurations are the best: no table")


if __name__ == "__main__":
    main()
