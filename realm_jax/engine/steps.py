"""What runs inside a step's jit beside the model: sampling, several decode steps in a row, copies of cache blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.engine.batch import advance, resolve_tokens
from realm_jax.engine.sequence import Sequence as Sample
from realm_jax.models import ForwardBatch, ModelOutput
from realm_jax.sampling import SampleOutput, SamplingBatch, SamplingPlan, sample

_STOP_TOKENS = 8  # of a sequence that end it on the device; the host knows them all
_NO_TOKEN = -1

Model = Callable[[ForwardBatch, Any], ModelOutput]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """Where sequences end by themselves: `tokens int32[B]` still to come, `stops int32[B, 8]`, -1 where fewer."""

    tokens: Any
    stops: Any

    @classmethod
    def of(cls, remaining: Sequence[int], sequences: Sequence[Sample], size: int) -> Limits:
        """The limits of a batch of `size` rows; the rows of padding have ended."""
        tokens, stops = np.zeros(size, np.int32), np.full((size, _STOP_TOKENS), _NO_TOKEN, np.int32)
        tokens[: len(remaining)] = remaining
        for row, sequence in enumerate(sequences):
            known = sequence.stop_token_ids[:_STOP_TOKENS]
            stops[row, : len(known)] = known
        return cls(tokens, stops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The static part of sampling after a step: its plan, and what computes it."""

    plan: SamplingPlan
    implementation: str

    def __call__(self, logits: jax.Array, batch: SamplingBatch) -> SampleOutput:
        """The next token of each row of logits."""
        return sample(logits, batch, self.plan, implementation=self.implementation)


def sample_once(
    model: Model, batch: ForwardBatch, cache: Any, operands: tuple[Any, ...], sampling: Sampling
) -> tuple[SampleOutput, Any, Any, Any]:
    """One step: what was sampled, the newest token of each row, the rows' histories where there are any, the cache."""
    previous, requests, _ = operands
    output = model(resolve_tokens(batch, previous), cache)
    return *sample_logits(sampling, output.logits, previous, requests), output.cache


def sample_logits(
    sampling: Sampling, logits: jax.Array, previous: jax.Array, requests: SamplingBatch
) -> tuple[SampleOutput, Any, Any]:
    """What is sampled from a step's logits, the newest token of each row, as many as `previous` has, and histories."""
    sampled = sampling(logits, requests)
    return sampled, _padded(sampled.tokens, previous.shape[0]), requests.after(sampled.tokens).history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """How many decode steps follow each other, and the sizes that they need."""

    steps: int
    vocab_size: int
    block_size: int


def decode_in_a_row(
    model: Model, batch: ForwardBatch, cache: Any, operands: tuple[Any, ...], sampling: Sampling, row: Row
) -> tuple[Any, Any, Any, Any]:
    """Up to `row.steps` decode steps, fewer where every sequence has ended; results have a leading axis of steps.

    Sequences that ended repeat their last token, so that a launch that follows sees that they ended.
    """
    previous, requests, limits = operands
    batch = resolve_tokens(batch, previous)

    def alive(step: jax.Array, batch: ForwardBatch) -> jax.Array:
        stopped = jnp.any(batch.tokens[:, None] == limits.stops, axis=1)
        return (step < limits.tokens) & ~stopped

    def go_on(carry: tuple[Any, ...]) -> jax.Array:
        step, batch, *_ = carry
        return (step < row.steps) & jnp.any(alive(step, batch))

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, batch, cache, requests, results = carry
        output = model(batch, cache)
        sampled = sampling(output.logits, requests)
        results = jax.tree.map(lambda all_, new: all_.at[step].set(new), results, sampled)
        batch = advance(batch, sampled.tokens, alive(step, batch), row.block_size)
        return step + 1, batch, output.cache, requests.after(sampled.tokens), results

    logits = jax.ShapeDtypeStruct((batch.logits_indices.shape[0], row.vocab_size), jnp.float32)
    sampled = jax.eval_shape(sampling, logits, requests)
    results = jax.tree.map(lambda array: jnp.zeros((row.steps, *array.shape), array.dtype), sampled)
    start = (jnp.int32(0), batch, cache, requests, results)
    _, batch, cache, requests, results = jax.lax.while_loop(go_on, one, start)
    return results, _padded(batch.tokens, previous.shape[0]), requests.history, cache


def copy_blocks(cache: Sequence[Any], pairs: jax.Array, groups: Sequence[int]) -> list[Any]:
    """Each layer's cache after the copies `pairs int32[G, n, 2]` (source, target) of its group, in order."""

    def copied(layer: Any, group: int) -> Any:
        def one(i: jax.Array, layer: Any) -> Any:
            source, target = pairs[group, i]

            def copy(array: jax.Array) -> jax.Array:
                block = jax.lax.dynamic_index_in_dim(array, source, keepdims=True)
                return jax.lax.dynamic_update_index_in_dim(array, block, target, axis=0)

            return jax.tree.map(copy, layer)

        return jax.lax.fori_loop(0, pairs.shape[1], one, layer)

    return [copied(layer, group) for layer, group in zip(cache, groups, strict=True)]


def _padded(tokens: jax.Array, size: int) -> jax.Array:
    return jnp.pad(tokens[:size], (0, max(0, size - tokens.shape[0])))
