"""One command for a machine with a GPU: are the kernels right on it, how fast are they, and how fast is a model.

usage: python -m benchmarks.gpu [--output FILE] [--seconds N] [--interpret]

The parts follow each other until the time is over; each is written out when it ends, so that a run that is cut off
leaves what it had. `gpu_timing.time_calls` says how times are taken. Needs neither the gguf package nor a model's file.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from benchmarks import gpu_kernels, report
from benchmarks.environment import describe, environment
from benchmarks.gpu_checks import all_cases, run_checks
from benchmarks.gpu_model import LLAMA_3_8B, TINY, Shape, measure_model, random_model
from benchmarks.gpu_timing import Effort, copy_bandwidth, matmul_peak
from pallas_kernels.case import Backend, KernelCase
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul.cases import MatmulCase
from realm_jax.cli.bench_measure import Case
from realm_jax.ops.backends import Implementation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run: on the device all of it, interpreted a little of everything.

    `shares`: the part of the time at whose end each part stops to begin another case.
    """

    backend: Backend
    interpret: bool
    checks: Sequence[KernelCase]
    matmuls: Sequence[MatmulCase]
    attentions: Sequence[AttentionCase]
    effort: Effort
    copied_bytes: int
    matrix: int
    shape: Shape
    tests: Sequence[Case]
    kv_caches: Sequence[str]
    repetitions: int
    shares: Mapping[str, float]

    @property
    def implementation(self) -> Implementation:
        """What runs the model."""
        names: Mapping[tuple[Backend, bool], Implementation] = {
            ("triton", False): "triton",
            ("triton", True): "triton_interpreted",
            ("tpu", False): "tpu",
            ("tpu", True): "tpu_interpreted",
        }
        return names[self.backend, self.interpret]


_SHARES: Mapping[str, float] = MappingProxyType({"checks": 0.45, "matmuls": 0.62, "attentions": 0.74})


def device_plan(backend: Backend) -> Plan:
    """Everything, for the device that JAX has."""
    depths = ((1, 512), (16, 512), (1, 4096))
    return Plan(
        backend=backend,
        interpret=False,
        checks=all_cases(small=False),
        matmuls=gpu_kernels.MATMULS,
        attentions=gpu_kernels.ATTENTIONS,
        effort=Effort(),
        copied_bytes=2**31,
        matrix=8192,
        shape=LLAMA_3_8B,
        tests=[
            Case(kind="pp", tokens=512, depth=0, batch=1),
            *(Case(kind="tg", tokens=64, depth=depth, batch=batch) for batch, depth in depths),
        ],
        kv_caches=("bfloat16", "q8_0"),
        repetitions=3,
        shares=_SHARES,
    )


def interpreted_plan(backend: Backend) -> Plan:
    """The same on tiny shapes, anywhere: times mean nothing, but all of it runs."""
    small = {case.name: case for case in all_cases(small=True)}
    attentions = ("attention odd channels", "attention 8 bits, odd channels")
    labels = ("matmul Q4_K 1x37x512", "moe Q4_K 3x2", "lora r8 1x1", *attentions)
    chosen = [case for name, case in small.items() if name.startswith(labels)]
    heads: Any = {"heads": 4, "kv_heads": 2, "head_dim": 16, "block_size": 32}
    return Plan(
        backend=backend,
        interpret=True,
        checks=chosen,
        matmuls=[case for case in chosen if isinstance(case, MatmulCase)],
        attentions=[AttentionCase(label="decode", sequences=((30, 1),) * 2, pool_dtype="int8", **heads)],
        effort=Effort(seconds=0, samples=2, copies=2),
        copied_bytes=2**16,
        matrix=64,
        shape=TINY,
        tests=[Case(kind="pp", tokens=16, depth=0, batch=1), Case(kind="tg", tokens=2, depth=4, batch=1)],
        kv_caches=("q8_0",),
        repetitions=1,
        shares=_SHARES,
    )


def measure(plan: Plan, seconds: float, parts: dict[str, Any], write: Any = lambda: None) -> None:
    """Run the parts in turn into `parts`, calling `write` after each; none begins after `seconds`."""
    start = time.monotonic()
    ends = {name: start + seconds * share for name, share in plan.shares.items()}
    device = "cpu" if plan.interpret else "cuda"
    parts["torch"] = gpu_kernels.torch_times(plan.attentions, device=device, seconds=seconds / 6)
    bandwidth, peak = copy_bandwidth(plan.copied_bytes, plan.effort), matmul_peak(plan.matrix, plan.effort)
    parts["ceilings"] = {"copy": bandwidth, "bfloat16": peak, "device": jax.devices()[0].device_kind}
    write()
    checks = run_checks(plan.backend, plan.checks, interpret=plan.interpret, deadline=ends["checks"])
    parts["checks"] = [{**dataclasses.asdict(check), "ok": check.ok} for check in checks]
    write()
    limits = gpu_kernels.Limits(bandwidth=1e9 * bandwidth.median, operations=1e12 * peak.median)
    options: Any = {"interpret": plan.interpret}
    for name, rows, cases in (
        ("matmuls", gpu_kernels.matmul_rows, plan.matmuls),
        ("attentions", gpu_kernels.attention_rows, plan.attentions),
    ):
        parts[name] = []
        for row in rows(cases, plan.backend, limits, plan.effort, deadline=ends[name], **options):
            parts[name].append(row.as_json(limits))
            write()
    parts["model"] = {"name": plan.shape.name, "implementation": plan.implementation, "tests": []}
    model = random_model(plan.shape, plan.implementation)
    for kv_cache in plan.kv_caches:
        if time.monotonic() > start + seconds:
            break
        for result in measure_model(model, plan.tests, kv_cache_dtype=kv_cache, repetitions=plan.repetitions):
            parts["model"]["tests"].append(result)
            write()
            if time.monotonic() > start + seconds:
                break


def tables(parts: Mapping[str, Any]) -> str:
    """The parts as Markdown: what failed, times beside peers, tokens a second."""
    ceilings, checks = parts["ceilings"], parts["checks"]
    failed = [(c["name"], c["failure"] or f"{c['error']:.2f} x the bound") for c in checks if not c["ok"]]
    lines = [
        f"{ceilings['device']}: copies {ceilings['copy']} GB/s, multiplies bfloat16 at {ceilings['bfloat16']} TFLOP/s.",
        f"Right: {sum(check['ok'] for check in checks)} of {len(checks)} cases.",
    ]
    if "failure" in parts["torch"]:
        lines.append(f"Without torch's times: {parts['torch']['failure']}.")
    sections = ["\n".join(lines)]
    if failed:
        sections.append(report.table(("case", "why not"), failed))
    torch = parts["torch"].get("times", {})
    for name in ("matmuls", "attentions"):
        rows = [_kernel_row(row, torch) for row in parts.get(name, ())]
        if rows:
            peers = "jnp bfloat16 us" if name == "matmuls" else "cuDNN us"
            columns = ("case", "kernel us", "of the roofline", peers, "XLA us", "torch us", "failures")
            sections.append(report.table(columns, rows))
    tests = parts.get("model", {}).get("tests", ())
    copied = 1e9 * ceilings["copy"].median
    rows = [(t["test"], t["batch"], t["depth"], t["kv_cache"], *_speed(t, copied)) for t in tests]
    columns = ("test", "batch", "depth", "KV cache", "tokens/s", "of the copy bandwidth")
    if rows:
        sections.append(f"{parts['model']['name']}:\n\n{report.table(columns, rows)}")
    return "\n\n".join(sections)


def _kernel_row(row: Mapping[str, Any], torch: Mapping[str, Any]) -> tuple[object, ...]:
    times = {name: f"{1e6 * timing['seconds'].median:.2f}" for name, timing in row["times"].items()}
    share = row["share_of_roofline"]
    peer = times.get("jnp bfloat16") or times.get("jax cudnn", "")
    listed = sorted(torch.get(row["name"].rpartition(", ")[0], {}).get("seconds", ()))
    others = (times.get("jax xla", ""), f"{1e6 * listed[len(listed) // 2]:.2f}" if listed else "")
    failures = "; ".join(f"{name}: {why}" for name, why in row["failures"].items()).replace("|", "/")
    return (row["name"], times.get("kernel", ""), "" if share is None else f"{share:.0%}", peer, *others, failures)


def _speed(test: Mapping[str, Any], copied: float) -> tuple[str, str]:
    """Tokens a second, and of a decode step the bytes that it has to read over what copying moves in its time."""
    rates = sorted(test["tokens_per_second"])
    rate = rates[len(rates) // 2]
    share = test["step_bytes"] * rate / test["batch"] / copied
    return f"{rate:,.1f}", f"{share:.0%}" if test["test"].startswith("tg") else ""


def main() -> None:
    """Measure, write JSON, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"), help="where results go as JSON")
    parser.add_argument("--seconds", type=float, default=420, help="after which no part begins (default: 420)")
    parser.add_argument("--interpret", action="store_true", help="tiny shapes, interpreted on any machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    # In a process of its own, and before this one takes the device's memory.
    parts: dict[str, Any] = {"environment": environment()}

    def write() -> None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report.as_json(parts) + "\n", encoding="utf-8")

    measure(_plan(options.interpret), options.seconds, parts, write)
    print(report.as_json(parts) if options.json else f"{describe(parts['environment'])}\n\n{tables(parts)}")


def _plan(interpret: bool) -> Plan:
    """The plan for the device that JAX has; RuntimeError where that has no kernels."""
    if interpret:
        return interpreted_plan("triton")
    backend: Backend | None = {"gpu": "triton", "tpu": "tpu"}.get(jax.default_backend())  # type: ignore[assignment]
    if backend is None:
        raise RuntimeError(f"benchmarks.gpu needs a GPU or a TPU, JAX has {jax.default_backend()!r}; try --interpret")
    return device_plan(backend)


if __name__ == "__main__":
    main()
