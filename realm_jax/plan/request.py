"""What is asked of a plan: a model's file, the devices, and how much is to run on them."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.engine.batch import BatchShape, Buckets, SequenceSlice
from realm_jax.ops.backends import Implementation
from realm_jax.plan.devices import Target, target_named
from realm_jax.plan.sizes import BLOCK_SIZE, STEP_TOKENS
from realm_jax.sharding import MESH_AXES

DEFAULT_CONTEXT = 4096
"""Tokens of context that are planned for unless told, if the model was trained on as many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """`batch` sequences of up to `context` tokens, on `chips` devices of a target over which matrices are split."""

    target: str
    chips: int
    context: int
    batch: int = 1
    kv_cache_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("context", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.device_target.chips(self.chips)

    @property
    def device_target(self) -> Target:
        """The target by its name."""
        return target_named(self.target)

    @property
    def mesh(self) -> dict[str, int]:
        """The sizes of the mesh's axes."""
        return {axis: self.chips if axis == "tensor" else 1 for axis in MESH_AXES}

    @property
    def implementation(self) -> Implementation:
        """What runs the model there: the device's kernels."""
        return self.device_target.device.backend

    def shapes(self, groups: int) -> dict[str, BatchShape]:
        """The buckets of a decode step at the full context, and of a prompt's last step."""
        buckets = Buckets(max_model_len=self.context, block_size=BLOCK_SIZE, groups=groups)
        one = SequenceSlice(tokens=(0,), start=self.context - 1, block_tables=((),), rows=(0,))
        tokens = self.prefill_tokens
        prompt = SequenceSlice(tokens=(0,) * tokens, start=self.context - tokens, block_tables=((),), rows=(0,))
        return {"decode": buckets.shape([one] * self.batch), "prefill": buckets.shape([prompt])}

    @property
    def prefill_tokens(self) -> int:
        """The tokens of a step of a prompt."""
        return min(STEP_TOKENS, self.context)

    def as_json(self) -> dict[str, Any]:
        """The request as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The request that `as_json` wrote."""
        return cls(**values)
