"""Requests of several lengths, drawn once from a seed, for programs that serve many at a time."""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """`prompts[i]` tokens of request i and `outputs[i]` to generate; the first `shared` tokens of all are the same."""

    prompts: list[int]
    outputs: list[int]
    shared: int = 0

    @classmethod
    def mixed(cls, count: int = 64, *, seed: int = 0) -> Workload:
        """Prompts of 16 to 512 tokens and outputs of 8 to 128."""
        draw = random.Random(seed)
        return cls(
            prompts=[draw.randint(16, 512) for _ in range(count)], outputs=[draw.randint(8, 128) for _ in range(count)]
        )

    @classmethod
    def with_prefix(cls, count: int = 64, *, shared: int = 400, seed: int = 0) -> Workload:
        """Prompts that share their first tokens and go on for 16 to 48 more; outputs of 8 to 32."""
        draw = random.Random(seed)
        return cls(
            prompts=[shared + draw.randint(16, 48) for _ in range(count)],
            outputs=[draw.randint(8, 32) for _ in range(count)],
            shared=shared,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest request, its output included."""
        return max(prompt + output for prompt, output in zip(self.prompts, self.outputs, strict=True))

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and outputs."""
        return sum(self.prompts) + sum(self.outputs)
