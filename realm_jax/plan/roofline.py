"""The bound that a device sets to a step: the bytes that have to move over its bandwidth, its products over its peak.

Only what cannot be avoided counts: weights and the part of the KV cache that is seen are read once, new keys and values
written; a product is two operations for each weight and token, an attention four for each channel of a head and pair of
tokens. A step takes at least the longer of both times (Williams, Waterman and Patterson, 2009). Devices of a mesh work
at the same time, and what they send each other is not counted: of experts, whose choice leaves devices with more and
with fewer to read, the bytes are those of the device with the most, for which the others wait.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from realm_jax.models import CausalLM
from realm_jax.nn.moe import MixtureOfExperts
from realm_jax.plan.devices import Device
from realm_jax.plan.sizes import CacheLayer, WeightSize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The bound on a step of `tokens` tokens: the bytes and operations of one device, and the seconds of each."""

    tokens: int
    bytes: int
    operations: int
    memory_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """The least that a step takes."""
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def tokens_per_second(self) -> float:
        """The most that all sequences get together."""
        return self.tokens / self.seconds

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """What takes the time."""
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is known of a model when a step's least work is counted.

    `heads`: channels of all query heads of each layer. A model without experts has one, which every token goes to.
    """

    weights: Sequence[WeightSize]
    cache: Sequence[CacheLayer]
    tied: bool
    num_experts: int
    experts_per_token: int
    heads: Sequence[int]

    @classmethod
    def of(cls, model: CausalLM, weights: Sequence[WeightSize], cache: Sequence[CacheLayer]) -> Work:
        """The work of a model of which these are the sizes."""
        experts = [layer.mlp.config for layer in model.layers if isinstance(layer.mlp, MixtureOfExperts)]
        attention = [layer.config.attention for layer in model.layers]
        return cls(
            weights=weights,
            cache=cache,
            tied=model.lm_head is None,
            num_experts=experts[0].num_experts if experts else 1,
            experts_per_token=experts[0].experts_per_token if experts else 1,
            heads=[config.num_heads * config.head_dim for config in attention],
        )

    def weight_bytes(self, tokens: int) -> int:
        """The weights that a step of so many tokens reads.

        Of a table of embeddings that is not the head too, the tokens' rows; of experts `experts_read`.
        """
        return round(sum(weight.bytes * self._share(weight, tokens) for weight in self.weights))

    def _share(self, weight: WeightSize, tokens: int) -> float:
        if weight.role == "token_embd" and not self.tied:
            return min(1.0, tokens / weight.shape[0])
        held = self.num_experts // self._expert_parts
        return self.experts_read(tokens) / held if weight.role.endswith("_exps") else 1.0

    def experts_read(self, tokens: int) -> float:
        """How many of a layer's experts are expected to be chosen on the device that has the most of them.

        Each is as likely as the others, and taken to be chosen or not whatever becomes of them: the largest of as many
        binomial numbers as there are devices. One token's experts, all different, are over all devices at least so
        many as an even spread leaves on one.
        """
        parts = self._expert_parts
        held, chosen = self.num_experts // parts, 1.0 - (1.0 - self._routed) ** tokens
        odds = [math.comb(held, n) * chosen**n * (1.0 - chosen) ** (held - n) for n in range(held)]
        most = sum(1.0 - min(1.0, at_most) ** parts for at_most in itertools.accumulate(odds))
        return max(most, math.ceil(self.experts_per_token / parts))

    @property
    def _expert_parts(self) -> int:
        """Over how many devices whole experts are spread."""
        return next((weight.parts for weight in self.weights if weight.split == "experts"), 1)

    @property
    def _routed(self) -> float:
        """The share of the experts that a token goes to."""
        return self.experts_per_token / self.num_experts

    def product_operations(self, tokens: int, rows: int) -> int:
        """The operations of all products with weights; `rows` of the tokens enter the head.

        Those with experts are shared evenly between devices.
        """
        total = 0.0
        for weight in self.weights:
            if not weight.is_matrix:
                continue
            is_head = weight.role == "output" or (weight.role == "token_embd" and self.tied)
            times = rows if is_head else 0 if weight.role == "token_embd" else tokens
            share = self._routed if weight.role.endswith("_exps") else 1.0
            total += 2.0 * weight.elements * share * times / weight.parts
        return round(total)

    def decode(self, device: Device, *, batch: int, context: int) -> Roofline:
        """One token of each of `batch` sequences that have `context` tokens with it."""
        cached = sum(layer.sequences_each(batch) * layer.bytes_in_use(context) for layer in self.cache)
        pairs = [layer.sequences_each(batch) * layer.positions_seen(context) for layer in self.cache]
        written = sum(batch * layer.bytes_in_use(1) for layer in self.cache)
        return self._roofline(device, batch, batch, self.weight_bytes(batch) + cached + written, pairs)

    def prefill(self, device: Device, *, tokens: int) -> Roofline:
        """The first `tokens` tokens of one sequence, in one step."""
        written = sum(layer.bytes_in_use(1) * tokens for layer in self.cache)
        pairs = []
        for layer in self.cache:
            window = layer.positions_seen(tokens)
            every = window * (window + 1) // 2 + (tokens - window) * window
            pairs.append(every // layer.devices_sharing(tokens))
        return self._roofline(device, tokens, 1, self.weight_bytes(tokens) + 2 * written, pairs)

    def _roofline(self, device: Device, tokens: int, rows: int, moved: int, pairs: Sequence[int]) -> Roofline:
        attention = sum(
            4 * channels * count // layer.parts
            for channels, count, layer in zip(self.heads, pairs, self.cache, strict=True)
        )
        operations = self.product_operations(tokens, rows) + attention
        return Roofline(
            tokens=tokens,
            bytes=moved,
            operations=operations,
            memory_seconds=moved / device.bandwidth,
            compute_seconds=operations / device.bfloat16,
        )
