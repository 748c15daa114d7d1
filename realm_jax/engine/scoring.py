"""Evaluating whole prompts without sampling: logits, log-probabilities of the prompt, captured activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.engine.batch import SequenceSlice
from realm_jax.engine.runner import Runner
from realm_jax.models import ForwardBatch, ModelOutput
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.ops import KVCache

_CHUNK = 512  # tokens of a step
_TOGETHER = 64  # prompts of a step; each takes at least one block of every layer's cache


def sequence_logits(
    runner: Runner, token_ids: Sequence[int], *, chunk: int = _CHUNK, taps: Taps = NO_TAPS
) -> np.ndarray:
    """`float32[T, vocab]`: the logits after every token of one sequence, computed `chunk` tokens at a step."""
    slices = chunks(runner, token_ids, chunk)
    return np.concatenate([np.asarray(logits)[: len(s.rows)] for s, logits in _run(runner, slices, _logits, taps)])


def score_rows(
    runner: Runner,
    slices: Sequence[SequenceSlice],
    function: Any,
    per_position: np.ndarray,
    taps: Taps = NO_TAPS,
) -> Iterator[list[np.ndarray]]:
    """`function(output, batch, rows of per_position)` of every step, without its padding.

    `per_position[T, ...]` has an entry for each position of the sequence; all positions of the slices are wanted.
    """
    cache = runner.new_cache(1 + len(slices[0].block_tables[0]))
    for part in slices:
        rows = runner.buckets.shape([part]).rows
        operand = np.zeros((rows, *per_position.shape[1:]), per_position.dtype)
        operand[: len(part.tokens)] = per_position[part.start : part.start + len(part.tokens)]
        result, cache = runner.evaluate([part], cache, function, taps, operands=(operand,))
        yield [np.asarray(array)[: len(part.tokens)] for array in result]


def capture(
    runner: Runner, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], taps: Taps
) -> list[dict[str, np.ndarray]]:
    """For each prompt the tapped activations at its `rows` (positions), `[len(rows), ...]` by point name."""
    captured: list[dict[str, np.ndarray]] = []
    for group in neighbours(prompts):
        if len(group) == 1:
            captured.append(_capture_long(runner, prompts[group[0]], rows[group[0]], taps))
        else:
            captured.extend(_capture_together(runner, [prompts[i] for i in group], [rows[i] for i in group], taps))
    return captured


def activation_points(runner: Runner) -> tuple[str, ...]:
    """The names of the model's activation points, in the order of the forward pass."""
    return runner.captured_names(Taps(capture=("**",)))


def neighbours(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Neighbouring prompts that fit one step together; a prompt that does not fit stands alone."""
    group: list[int] = []
    total = 0
    for i, prompt in enumerate(prompts):
        if group and (total + len(prompt) > _CHUNK or len(group) == _TOGETHER):
            yield group
            group, total = [], 0
        group.append(i)
        total += len(prompt)
    if group:
        yield group


def _capture_long(runner: Runner, prompt: Sequence[int], rows: Sequence[int], taps: Taps) -> dict[str, np.ndarray]:
    wanted = np.asarray(rows)
    slices = []
    for s in chunks(runner, prompt, _CHUNK):
        inside = wanted[(wanted >= s.start) & (wanted < s.start + len(s.tokens))] - s.start
        slices.append(dataclasses.replace(s, rows=inside.tolist()))
    while not slices[-1].rows:
        slices.pop()
    parts = [
        {name: np.asarray(value)[: len(s.rows)] for name, value in result.items()}
        for s, result in _run(runner, slices, _captured_rows, taps)
        if s.rows
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _within_context(joined, len(prompt))


def _capture_together(
    runner: Runner, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], taps: Taps
) -> Iterator[dict[str, np.ndarray]]:
    slices, blocks = together(runner, prompts)
    slices = [dataclasses.replace(part, rows=wanted) for part, wanted in zip(slices, rows, strict=True)]
    result, _ = runner.evaluate(slices, runner.new_cache(blocks), _captured_rows, taps)
    at = 0
    for s in slices:
        own = {name: np.asarray(value[at : at + len(s.rows)]) for name, value in result.items()}
        yield _within_context(own, len(s.tokens))
        at += len(s.rows)


def together(runner: Runner, prompts: Sequence[Sequence[int]]) -> tuple[list[SequenceSlice], int]:
    """Prompts as one step that wants no rows, and how many blocks its cache needs: a power of two."""
    width = runner.buckets.pages(max(map(len, prompts)))
    slices, used = [], 1
    for prompt in prompts:
        needed = -(-len(prompt) // runner.block_size)
        table = [*range(used, used + needed), *[0] * (width - needed)]
        slices.append(SequenceSlice(tokens=prompt, start=0, block_tables=(table,), rows=()))
        used += needed
    return slices, 1 << (used - 1).bit_length()


def _within_context(captured: dict[str, np.ndarray], context: int) -> dict[str, np.ndarray]:
    """Attention patterns without the columns that only pad the block table."""
    return {name: value[..., :context] if name.endswith("attn.pattern") else value for name, value in captured.items()}


def whole_sequence(runner: Runner, token_ids: Sequence[int]) -> tuple[ForwardBatch, list[KVCache]]:
    """One sequence as the model's arguments, without padding: a batch that wants all logits, and a cache of one block
    that holds the whole of it."""
    count, groups = len(token_ids), runner.buckets.groups
    every = jnp.arange(count, dtype=jnp.int32)
    batch = ForwardBatch(
        tokens=jnp.asarray(token_ids, jnp.int32),
        positions=every,
        slot_mapping=jnp.tile(every, (groups, 1)),
        query_start=jnp.asarray([0, count], jnp.int32),
        context_lens=jnp.asarray([count], jnp.int32),
        block_tables=jnp.zeros((groups, 1, 1), jnp.int32),
        logits_indices=every,
    )
    arrays = [layer.array(1, -(-count // 16) * 16, runner.kv_cache_dtype) for layer in runner.spec]
    return batch, jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), arrays)


def chunks(runner: Runner, token_ids: Sequence[int], chunk: int = _CHUNK) -> list[SequenceSlice]:
    """One sequence in steps of `chunk` tokens."""
    if not token_ids:
        raise ValueError("token_ids must not be empty")
    if len(token_ids) > runner.max_model_len:
        raise ValueError(f"{len(token_ids)} tokens do not fit max_model_len = {runner.max_model_len}")
    table = range(1, 1 + runner.buckets.pages(len(token_ids)))
    starts = range(0, len(token_ids), chunk)
    parts = [token_ids[start : start + chunk] for start in starts]
    return [
        SequenceSlice(tokens=part, start=start, block_tables=(table,), rows=range(len(part)))
        for start, part in zip(starts, parts, strict=True)
    ]


def _run(
    runner: Runner, slices: Sequence[SequenceSlice], function: Any, taps: Taps
) -> Iterator[tuple[SequenceSlice, Any]]:
    cache = runner.new_cache(1 + len(slices[0].block_tables[0]))
    for part in slices:
        result, cache = runner.evaluate([part], cache, function, taps)
        yield part, result


def _logits(output: ModelOutput, batch: ForwardBatch) -> jax.Array:
    return output.logits


def _captured_rows(output: ModelOutput, batch: ForwardBatch) -> dict[str, jax.Array]:
    """The captured activations at the wanted rows; the logits are computed for those rows alone."""
    rows = batch.logits_indices
    return {name: value if name == "logits" else value[rows] for name, value in output.captured.items()}
