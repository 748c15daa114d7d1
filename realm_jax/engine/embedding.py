"""Embedding: one vector for each prompt, pooled from the last layer's output inside the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.engine.runner import Runner
from realm_jax.engine.scoring import chunks, neighbours, together
from realm_jax.models import ForwardBatch, ModelOutput
from realm_jax.nn import Taps

_POINT = "final_norm"
_TAPS = Taps(capture=(_POINT,))


def _sums(output: ModelOutput, batch: ForwardBatch) -> jax.Array:
    """`float32[B, hidden]`: the sum over the tokens of each sequence; padding belongs to none."""
    hidden = output.captured[_POINT].astype(jnp.float32)
    rows = jnp.arange(hidden.shape[0])
    sequence = jnp.searchsorted(batch.query_start, rows, side="right") - 1
    return jax.ops.segment_sum(hidden, sequence, num_segments=batch.query_start.shape[0])[:-1]


def _lasts(output: ModelOutput, batch: ForwardBatch) -> jax.Array:
    return output.captured[_POINT].astype(jnp.float32)[jnp.maximum(batch.query_start[1:] - 1, 0)]


def _firsts(output: ModelOutput, batch: ForwardBatch) -> jax.Array:
    return output.captured[_POINT].astype(jnp.float32)[batch.query_start[:-1]]


POOLINGS: Mapping[str, Callable[[ModelOutput, ForwardBatch], jax.Array]] = MappingProxyType(
    {"mean": _sums, "last": _lasts, "cls": _firsts}
)


def embed(runner: Runner, prompts: SequenceOf[SequenceOf[int]], pooling: str, *, normalize: bool) -> np.ndarray:
    """`float32[prompts, hidden]`: the mean of each prompt's "final_norm", or that of its last or first ("cls") token.

    `normalize` scales each vector to Euclidean length 1. Neighbouring prompts that are short share a step.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    pooled = [
        vector for group in neighbours(prompts) for vector in _group(runner, [prompts[i] for i in group], pooling)
    ]
    vectors = np.stack(pooled)
    if pooling == "mean":
        vectors /= np.asarray([[len(prompt)] for prompt in prompts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


def _group(runner: Runner, prompts: SequenceOf[SequenceOf[int]], pooling: str) -> Iterator[np.ndarray]:
    if len(prompts) > 1:
        slices, blocks = together(runner, prompts)
        vectors, _ = runner.evaluate(slices, runner.new_cache(blocks), POOLINGS[pooling], _TAPS)
        yield from np.asarray(vectors)[: len(prompts)]
        return
    parts = []
    cache = None
    for part in chunks(runner, prompts[0]):
        cache = runner.new_cache(1 + len(part.block_tables[0])) if cache is None else cache
        vectors, cache = runner.evaluate([dataclasses.replace(part, rows=())], cache, POOLINGS[pooling], _TAPS)
        parts.append(np.asarray(vectors)[0])
    yield {"mean": sum(parts[1:], parts[0]), "last": parts[-1], "cls": parts[0]}[pooling]
