"""How long the kernels take, beside the vendors' on the same shapes in bfloat16, and of what the device can do."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import ROOT
from benchmarks.gpu_inputs import AttentionInputs, attention_inputs, random_weight
from benchmarks.gpu_timing import Effort, Timing, time_calls
from pallas_kernels.case import Backend
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_matmul.cases import MatmulCase

_LLAMA_8B = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))

MATMULS: tuple[MatmulCase, ...] = (
    *(
        MatmulCase(kind="Q4_K", tokens=tokens, rows=rows, columns=columns)
        for tokens in (1, 512)
        for rows, columns in _LLAMA_8B
    ),
    MatmulCase(kind="Q6_K", tokens=1, rows=4096, columns=14336),
    MatmulCase(kind="Q6_K", tokens=512, rows=4096, columns=14336),
    MatmulCase(kind="Q6_K", tokens=1, rows=128256, columns=4096),
    *(
        MatmulCase(kind=kind, tokens=tokens, rows=4096, columns=14336)
        for kind in ("Q8_0", "Q4_0", "Q5_K", "MXFP4", "Q2_K")
        for tokens in (1, 512)
    ),
    *(MatmulCase(kind="Q4_K", tokens=tokens, rows=14336, columns=4096) for tokens in (8, 16, 64, 2048)),
    *(
        MatmulCase(kind=kind, tokens=512, rows=4096, columns=14336, activations="int8")
        for kind in ("Q4_K", "Q4_0", "Q8_0")
    ),
)
"""What matters first comes first: the time may end."""


def _llama_attention(label: str, sequences: tuple[tuple[int, int], ...], pool_dtype: str) -> AttentionCase:
    heads: dict[str, Any] = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    return AttentionCase(label=label, sequences=sequences, pool_dtype=pool_dtype, **heads)


ATTENTIONS: tuple[AttentionCase, ...] = tuple(
    _llama_attention(label, sequences, pool_dtype)
    for label, sequences in (
        ("prefill", ((0, 2048),)),
        ("decode", ((4095, 1),) * 64),
        ("decode", ((2047, 1),) * 4),
        ("prefill", ((0, 8192),)),
        ("decode", ((8191, 1),)),
    )
    for pool_dtype in ("bfloat16", "int8")
)
"""Whole prompts, as peers have them, and single tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What the device was measured to do: bytes copied and bfloat16 operations, a second."""

    bandwidth: float
    operations: float

    def least_seconds(self, bytes_moved: int, flops: int) -> float:
        """The longer of the two times that a case needs at least."""
        return max(bytes_moved / self.bandwidth, flops / self.operations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A case with the times of the kernel and its peers by name; of a peer that failed, why in `failures`."""

    name: str
    bytes_moved: int
    flops: int
    timings: dict[str, Timing]
    failures: dict[str, str]

    def as_json(self, limits: Limits) -> dict[str, Any]:
        """Plain values, with each time's share of what the device can do."""
        least = limits.least_seconds(self.bytes_moved, self.flops)
        shown: dict[str, Any] = {}
        for name, timing in self.timings.items():
            facts = {"calls": timing.calls, "copies": timing.copies, "resident": timing.resident}
            shown[name] = {"seconds": timing.seconds, **facts}
        own = self.timings.get("kernel")
        share = None if own is None else least / own.seconds.median
        sizes = {"bytes_moved": self.bytes_moved, "flops": self.flops, "roofline_seconds": least}
        return {"name": self.name, **sizes, "share_of_roofline": share, "times": shown, "failures": self.failures}


_Timed = Callable[[], Timing]


def matmul_rows(
    cases: Sequence[MatmulCase], backend: Backend, limits: Limits, effort: Effort, *, interpret: bool, deadline: float
) -> Iterator[Row]:
    """Each case beside the product of bfloat16 matrices of its shape, in the library that XLA calls."""
    for case in cases:
        if time.monotonic() > deadline:
            return
        program, shape = case.program(backend), (case.rows, case.columns)
        assert program.bytes_moved is not None and program.flops is not None
        x = jax.random.normal(jax.random.key(0), (case.tokens, case.columns), jnp.bfloat16)
        least = limits.least_seconds(program.bytes_moved, program.flops)
        options: Any = {"backend": backend, "activations": case.activations, "interpret": interpret}
        multiply = functools.partial(quantized_matmul, kind=case.kind, shape=shape, **options)

        def kernel() -> Timing:
            stored = random_weight(case.kind, shape, backend).stored  # noqa: B023
            return time_calls(multiply, x, stored, least=least, effort=effort)  # noqa: B023

        def dense() -> Timing:
            dense_bytes = 2 * (case.rows * case.columns + case.tokens * (case.rows + case.columns))  # noqa: B023
            needed = limits.least_seconds(dense_bytes, program.flops or 0)  # noqa: B023
            weight = jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)  # noqa: B023
            return time_calls(lambda x, w: x @ w.T, x, weight, least=needed, effort=effort)  # noqa: B023

        yield _row(case.name, program.bytes_moved, program.flops, {"kernel": kernel, "jnp bfloat16": dense})


def attention_rows(
    cases: Sequence[AttentionCase],
    backend: Backend,
    limits: Limits,
    effort: Effort,
    *,
    interpret: bool,
    deadline: float,
) -> Iterator[Row]:
    """Each case beside `jax.nn.dot_product_attention` on contiguous keys and values in the type of q."""
    for case in cases:
        if time.monotonic() > deadline:
            return
        program = case.program(backend)
        assert program.bytes_moved is not None and program.flops is not None
        given = attention_inputs(case)
        least = limits.least_seconds(program.bytes_moved, program.flops)

        def attend(q: jax.Array, rest: Any) -> jax.Array:
            pool, batch, sinks = rest
            options = {"backend": backend, "sinks": sinks, "interpret": interpret}
            return paged_attention(q, pool, batch, case.options, **options)  # noqa: B023

        def kernel() -> Timing:
            rest = (given.pool, given.batch, given.sinks)  # noqa: B023
            return time_calls(attend, given.q, rest, least=least, effort=effort)  # noqa: B023

        peers: dict[str, _Timed] = {"kernel": kernel}
        if _comparable(case):
            for name in ("xla",) if interpret else ("cudnn", "xla"):
                peers[f"jax {name}"] = functools.partial(_dense_attention, case, given, name, least, effort)
        yield _row(f"{case.name}, {case.pool_dtype}", program.bytes_moved, program.flops, peers)


def _comparable(case: AttentionCase) -> bool:
    """Whether peers compute the same: equal lengths, whole prompts or single tokens, nothing but a causal mask."""
    before, new = case.sequences[0]
    plain = case.window is None and case.softcap is None and not case.sinks and not case.padding
    return plain and len(set(case.sequences)) == 1 and (new == 1 or before == 0)


def _dense_attention(
    case: AttentionCase, given: AttentionInputs, implementation: Any, least: float, effort: Effort
) -> Timing:
    before, new = case.sequences[0]
    batch, keys = len(case.sequences), jax.random.split(jax.random.key(1))
    q = given.q.reshape(batch, new, case.heads, case.head_dim)
    shape = (batch, before + new, case.kv_heads, case.head_dim)
    k, v = (jax.random.normal(key, shape, jnp.float32).astype(q.dtype) for key in keys)

    def attend(q: jax.Array, kv: tuple[jax.Array, jax.Array]) -> jax.Array:
        options = {"is_causal": new > 1, "scale": case.options.scale, "implementation": implementation}
        return jax.nn.dot_product_attention(q, *kv, **options)

    return time_calls(attend, q, (k, v), least=least, effort=effort)


def _row(name: str, bytes_moved: int, flops: int, timed: dict[str, _Timed]) -> Row:
    timings, failures = {}, {}
    for label, one in timed.items():
        try:
            timings[label] = one()
        except Exception as failure:  # what a compiler or a library refuses is the row's result
            text = " ".join(str(failure).split())[:200]
            failures[label] = f"{type(failure).__name__}: {text}"
    return Row(name=name, bytes_moved=bytes_moved, flops=flops, timings=timings, failures=failures)


def torch_times(cases: Sequence[AttentionCase], *, device: str, seconds: float) -> dict[str, Any]:
    """Seconds of a call of torch's `scaled_dot_product_attention` for each comparable case, by its name.

    A process of its own; JAX leaves it a quarter of a GPU's memory. Where torch is not installed, or fails, `failure`
    says so.
    """
    shapes = [
        {
            "name": case.name,
            "batch": len(case.sequences),
            "heads": case.heads,
            "kv_heads": case.kv_heads,
            "head_dim": case.head_dim,
            "queries": case.sequences[0][1],
            "keys": sum(case.sequences[0]),
        }
        for case in {case.name: case for case in cases if _comparable(case)}.values()
    ]
    command = [sys.executable, "-m", "benchmarks.gpu_torch"]
    given = json.dumps({"device": device, "shapes": shapes})
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failure": f"torch took more than {math.ceil(seconds)} s"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])
