"""Engine: admits sequences, runs prefill and decode steps, and hands each sampled token to its sequence."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence as SequenceOf
from typing import Any

import jax
import numpy as np

from realm_jax.engine.batch import SequenceSlice
from realm_jax.engine.blocks import BlockPool
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence, TokenLogprobs
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.sampling import SampleOutput, SamplingBatch, SamplingPlan, pack, plan_for


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """One token for each sequence of a batch, and how many positions were computed for it.

    `output`: a SampleOutput of numpy arrays.
    """

    batch: list[Sequence]
    counts: list[int]
    output: Any


class Engine:
    """First come, first served: a sequence is admitted when all blocks it can come to need are free.

    A step is a prefill of one sequence, `prefill_chunk` tokens at most, or one token of every running sequence. Up to
    `decode_steps` of the latter run on the device in one go, ahead of the steps that hand their tokens out; what a
    sequence that ends meanwhile was given beyond its end is dropped.
    """

    def __init__(self, runner: Runner, *, max_num_seqs: int, prefill_chunk: int = 512, decode_steps: int = 1) -> None:
        self.runner = runner
        self.max_num_seqs = max_num_seqs
        self.prefill_chunk = prefill_chunk
        self.decode_steps = decode_steps
        self.pool = BlockPool(runner.num_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._ahead: deque[_Sampled] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. ValueError if it could never be admitted."""
        needed, owned = self._blocks_for(sequence), self.runner.num_blocks - 1
        if needed > owned:
            raise ValueError(
                f"a sequence of up to {sequence.longest} tokens needs {needed} blocks of KV cache, but the cache has "
                f"{owned}; raise kv_cache_memory or lower max_tokens"
            )
        self._waiting.append(sequence)

    def abort(self, sequences: SequenceOf[Sequence]) -> None:
        """Finish sequences now and free what they hold."""
        for sequence in sequences:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            elif sequence in self._running:
                self._retire(sequence)
            if not sequence.finished:
                sequence.abort()
        if not self._running:
            self._ahead.clear()

    def step(self, taps: Taps = NO_TAPS) -> list[Sequence]:
        """Run one step and return the sequences that got a token."""
        if not self._ahead:
            self._compute(taps)
        return self._distribute(self._ahead.popleft()) if self._ahead else []

    def _compute(self, taps: Taps) -> None:
        """Run the device on a prefill, or on as many decode steps as go in one, and keep what was sampled."""
        self._admit()
        prefill = next((s for s in self._running if s.prefilling), None)
        batch = [prefill] if prefill else list(self._running)
        slices = [sequence.next_slice(self.prefill_chunk) for sequence in batch]
        sampling, plan = self._sampling(batch, slices)
        steps = 1 if prefill else self._steps(plan, taps)
        output = self.runner.step(slices, sampling, plan, taps, steps)
        if output is None:
            batch[0].num_computed_tokens += len(slices[0].tokens)
            return
        sampled: Any = jax.tree.map(np.asarray, output)
        for step in range(steps):
            part = sampled if steps == 1 else jax.tree.map(lambda array, at=step: array[at], sampled)
            self._ahead.append(_Sampled(batch, [1 if step else len(s.tokens) for s in slices], part))

    def _steps(self, plan: SamplingPlan | None, taps: Taps) -> int:
        repeats = plan is not None and plan.repeats and taps == NO_TAPS
        return self.decode_steps if repeats else 1

    def warm_up(self, sequences: SequenceOf[Sequence], taps: Taps = NO_TAPS) -> None:
        """Compile the first prefill and the first decode step of these sequences side by side."""
        first = sequences[0].next_slice(self.prefill_chunk)
        together = sequences[: self.max_num_seqs]
        decodes = [SequenceSlice(tokens=(0,), start=s.num_tokens, block_table=(), rows=(0,)) for s in together]
        keys = [self.runner.step_key([first], *self._sampling(sequences[:1], [first]), taps)]
        if any(s.max_tokens > 1 for s in together):
            sampling, plan = self._sampling(together, decodes)
            keys.append(self.runner.step_key(decodes, sampling, plan, taps, self._steps(plan, taps)))
        self.runner.warm_up(keys)

    def _sampling(
        self, batch: SequenceOf[Sequence], slices: SequenceOf[SequenceSlice]
    ) -> tuple[SamplingBatch | None, SamplingPlan | None]:
        """How to sample after a step; nothing is sampled where the slices end inside their sequences."""
        if not slices[0].rows:
            return None, None
        plan = plan_for([s.params for s in batch])
        return pack([s.sampling for s in batch], plan, size=self.runner.buckets.shape(slices).sequences), plan

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_num_seqs:
            needed = self._blocks_for(self._waiting[0])
            if needed > self.pool.free:
                return
            sequence = self._waiting.popleft()
            sequence.blocks = self.pool.allocate(needed)
            self._running.append(sequence)

    def _blocks_for(self, sequence: Sequence) -> int:
        return -(-sequence.longest // self.runner.block_size)

    def _distribute(self, sampled: _Sampled) -> list[Sequence]:
        """Hand each sequence that still runs its token."""
        output = sampled.output
        tokens = output.tokens.tolist()
        report = None if output.logprobs is None else _reported(output)
        took = []
        for row, (sequence, count) in enumerate(zip(sampled.batch, sampled.counts, strict=True)):
            if sequence.finished:
                continue
            sequence.num_computed_tokens += count
            wanted = sequence.params.logprobs
            logprobs = None if wanted is None or report is None else _token_logprobs(report, row, wanted)
            sequence.append(tokens[row], logprobs)
            took.append(sequence)
            if sequence.finished:
                self._retire(sequence)
        if not self._running:
            self._ahead.clear()
        return took

    def _retire(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []


def _reported(output: SampleOutput) -> tuple[Any, ...]:
    return output.logprobs, output.rank, output.top_ids, output.top_logprobs


def _token_logprobs(report: SequenceOf[np.ndarray], row: int, wanted: int) -> TokenLogprobs:
    logprobs, ranks, top_ids, top = report
    return TokenLogprobs(
        token=float(logprobs[row]),
        rank=int(ranks[row]),
        top_ids=tuple(top_ids[row, :wanted].tolist()),
        top=tuple(top[row, :wanted].tolist()),
    )
