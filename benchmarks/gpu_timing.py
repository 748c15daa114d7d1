"""Times on an accelerator: calls in a chain inside one program, and what the device can copy and multiply at most."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.samples import Samples

_CACHE = 2**26
"""Bytes that no cache of a GPU exceeds by much: an H200 has 60 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a chain of calls runs, and how often it is timed.

    Attributes:
        seconds: of a chain, about; what launching it costs is spread over all of it.
        samples: timed chains.
        copies: of an operation's operands at most, so that they do not stay in a cache from one call to the next.
        copied_bytes: of all copies together where so many are allowed.
    """

    seconds: float = 5e-3
    samples: int = 7
    copies: int = 8
    copied_bytes: int = 4 * _CACHE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a call; `calls` in each sample, over `copies` of the operands that take turns.

    `resident`: the copies fit into a cache, so that the device's memory bounds nothing.
    """

    seconds: Samples
    calls: int
    copies: int
    resident: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """A compiled program that makes `calls` calls, over `copies` of the operands that take turns; see `Timing`."""

    program: Callable[..., Any]
    operands: tuple[Any, ...]
    calls: int
    copies: int
    resident: bool

    def seconds(self) -> float:
        """Seconds of a call in one run; the clock is the host's, around a launch and the wait for its end."""
        start = time.perf_counter()
        jax.block_until_ready(self.program(*self.operands))
        return (time.perf_counter() - start) / self.calls


def chain_of(
    function: Callable[[jax.Array, Any], jax.Array], x: jax.Array, operands: Any, *, least: float, effort: Effort
) -> Chain:
    """Calls of `function(x, operands)`, which takes `least` seconds at least, compiled and run once.

    One program makes all calls of a sample, so that dispatch is paid once: a loop over the copies of `operands`, in
    turn. Barriers between a call's result and the next call's x keep the compiler from merging calls. The loop carries
    all results of a turn, so that they are computed whole, and adds an element of each to x, times zero, so that no
    call can move out of it: one small kernel a turn, whose time is counted.
    """
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(operands))
    count = min(effort.copies, max(1, -(-effort.copied_bytes // max(size, 1))))
    copies = [operands, *(jax.tree.map(jnp.copy, operands) for _ in range(count - 1))]
    trips = max(1, math.ceil(effort.seconds / (count * least)))

    def chain(x: jax.Array, copies: Sequence[Any]) -> Any:
        def turn(_: jax.Array, carry: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
            x, results = carry[0], []
            for copy in copies:
                x, y = jax.lax.optimization_barrier((x, function(x, copy)))
                results.append(y)
            seen = sum(y[(0,) * y.ndim].astype(jnp.float32) for y in results)
            return x + (0 * seen).astype(x.dtype), results

        shape = jax.eval_shape(function, x, copies[0])
        return jax.lax.fori_loop(0, trips, turn, (x, [jnp.zeros(shape.shape, shape.dtype)] * count))

    program = jax.jit(chain).lower(x, copies).compile()
    jax.block_until_ready(program(x, copies))
    return Chain(
        program=program, operands=(x, copies), calls=trips * count, copies=count, resident=size * count < _CACHE
    )


def time_calls(
    function: Callable[[jax.Array, Any], jax.Array], x: jax.Array, operands: Any, *, least: float, effort: Effort
) -> Timing:
    """Time a chain of calls, see `chain_of`."""
    chain = chain_of(function, x, operands, least=least, effort=effort)
    each = Samples(unit="s", values=tuple(chain.seconds() for _ in range(effort.samples)))
    return Timing(seconds=each, calls=chain.calls, copies=chain.copies, resident=chain.resident)


def _times(function: Callable[..., Any], operands: tuple[Any, ...], samples: int) -> list[float]:
    program = jax.jit(function).lower(*operands).compile()
    jax.block_until_ready(program(*operands))
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        jax.block_until_ready(program(*operands))
        seconds.append(time.perf_counter() - start)
    return seconds


def copy_bandwidth(size: int, effort: Effort, trips: int = 8) -> Samples:
    """GB/s, read and written together, of adding a number to each of `size` bytes."""
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)

    def run(x: jax.Array, step: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, trips, lambda _, x: x + step, x)

    seconds = _times(run, (x, jnp.float32(1.0)), effort.samples)
    return Samples(unit="GB/s", values=tuple(2 * x.nbytes * trips / s / 1e9 for s in seconds))


def matmul_peak(size: int, effort: Effort, trips: int = 8) -> Samples:
    """TFLOP/s of products of random bfloat16 matrices `[size, size]` by the vendor's library."""
    x, w = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    w = (w * size**-0.5).astype(jnp.bfloat16)  # products keep the size of what they are made of

    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, trips, lambda _, x: x @ w, x)

    seconds = _times(run, (x, w), effort.samples)
    return Samples(unit="TFLOP/s", values=tuple(2 * size**3 * trips / s / 1e12 for s in seconds))
