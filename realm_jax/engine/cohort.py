"""Cohort: sequences that are sampled together, launch after launch, and what stays the same of that meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np

from realm_jax.engine.sequence import Sequence
from realm_jax.engine.steps import Limits
from realm_jax.sampling import SamplingBatch, SamplingPlan, pack, pack_history


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """`sequences`, in the order of their rows, under a plan that repeats, packed into a batch of `rows` rows.

    `sampling` and `limits` give the arrays that `pack` and `Limits.of` make anew of the sequences *(tests)*, and
    `history` those of their known tokens.
    """

    sequences: SequenceOf[Sequence]
    plan: SamplingPlan
    rows: int
    _packed: SamplingBatch
    _prompts: np.ndarray
    _longest: np.ndarray
    _limits: Limits

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], plan: SamplingPlan, rows: int) -> Cohort:
        """The cohort of these sequences."""
        return cls(
            sequences=sequences,
            plan=plan,
            rows=rows,
            _packed=pack([s.sampling for s in sequences], plan, size=rows),
            _prompts=np.array([s.prompt_length for s in sequences], np.int32),
            _longest=np.array([s.longest for s in sequences], np.int32),
            _limits=Limits.of([0] * len(sequences), sequences, rows),
        )

    def is_of(self, sequences: SequenceOf[Sequence], plan: SamplingPlan, rows: int) -> bool:
        """Whether this is the cohort of these sequences."""
        return self.sequences == sequences and self.rows == rows and self.plan == plan

    def sampling(self, lengths: np.ndarray, history: Any = None) -> SamplingBatch:
        """What sampling is given when the sequences have `lengths int32[n]` tokens, with these histories."""
        return self._packed.at_step(lengths - self._prompts, history)

    def history(self, longest: int) -> np.ndarray | None:
        """The known tokens of each sequence with room for `longest` in all, where the plan looks at them."""
        requests = [sequence.sampling for sequence in self.sequences]
        return pack_history(requests, size=self.rows, least=longest) if self.plan.history else None

    def limits(self, lengths: np.ndarray, steps: int) -> Limits:
        """Where the sequences end, likewise, all of them after `steps` tokens at the latest."""
        tokens = np.zeros(self.rows, np.int32)
        tokens[: len(lengths)] = np.minimum(self._longest - lengths, steps)
        return Limits(tokens, self._limits.stops)
