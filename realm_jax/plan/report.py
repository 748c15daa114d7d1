"""Plan: what running a model on a target takes, put together from sizes, the roofline and what was compiled."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from realm_jax import models
from realm_jax.gguf import GGUFFile
from realm_jax.models import ModelConfig
from realm_jax.ops.backends import layout_name
from realm_jax.plan.compiling import Compilation
from realm_jax.plan.devices import Device
from realm_jax.plan.request import DEFAULT_CONTEXT, PlanRequest
from realm_jax.plan.roofline import Roofline, Work
from realm_jax.plan.sizes import CacheLayer, Room, WeightSize, cache_layers, room, weight_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRow:
    """Tensors of one role that lie alike: in `parts` along an axis, or whole on every device (`axis` None)."""

    role: str
    axis: str | None
    parts: int
    tensors: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything that is known of a model on a target. All bytes are those of one device.

    `fallbacks` are the types of the quantised matrices that the implementation has no kernels for, by name.
    """

    request: PlanRequest
    config: ModelConfig
    file_bytes: int
    weights: Sequence[WeightSize]
    cache: Sequence[CacheLayer]
    work: Work
    fallbacks: Mapping[str, str]
    compilation: Compilation

    @property
    def device(self) -> Device:
        """One of the target's devices."""
        return self.request.device_target.device

    @property
    def weight_bytes(self) -> int:
        """Of all weights."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def cache_bytes(self) -> int:
        """Of the KV cache, for all sequences at the full context."""
        return sum(layer.bytes for layer in self.cache)

    @property
    def temporary_bytes(self) -> int | None:
        """Of what the greater of the steps needs besides, results included; None where not both were compiled."""
        steps = self.compilation.steps.values()
        return max(step.temporary_bytes + step.output_bytes for step in steps) if len(steps) == 2 else None

    @property
    def padding_bytes(self) -> int | None:
        """What weights and cache take beyond their sizes, in the layouts that the compiler gives them."""
        step = self.compilation.steps.get("decode")
        if step is None:
            return None
        held = [weights + layer.bytes for weights, layer in zip(self._layer_weights, self.cache, strict=True)]
        return max(0, step.all_argument_bytes(held) - self.weight_bytes - self.cache_bytes)

    @property
    def total_bytes(self) -> int:
        """All that is known."""
        return self.weight_bytes + self.cache_bytes + (self.padding_bytes or 0) + (self.temporary_bytes or 0)

    @property
    def fits(self) -> bool:
        """Whether all that is known fits into the memory of a device."""
        return self.total_bytes <= self.device.memory

    @cached_property
    def room(self) -> Room:
        """How far context and batch may grow, with the same temporaries."""
        spec = [layer.spec for layer in self.cache]

        def cache_bytes(context: int, batch: int) -> int:
            options: dict[str, Any] = {"context": context, "batch": batch, "dtype": self.request.kv_cache_dtype}
            return sum(layer.bytes for layer in cache_layers(spec, self.request.mesh, **options))

        free = self.device.memory - (self.total_bytes - self.cache_bytes)
        limits = {"context": self.request.context, "batch": self.request.batch, "trained": self.config.context_length}
        return room(cache_bytes, **limits, free=free)

    @property
    def decode(self) -> Roofline:
        """The bound on decoding at the full context."""
        return self.work.decode(self.device, batch=self.request.batch, context=self.request.context)

    @property
    def prefill(self) -> Roofline:
        """The bound on the first step of a prompt."""
        return self.work.prefill(self.device, tokens=self.request.prefill_tokens)

    @property
    def splits(self) -> list[SplitRow]:
        """How the matrices lie on several devices, by role."""
        rows = collections.Counter((w.role, w.split, w.parts) for w in self.weights if w.is_matrix)
        return [SplitRow(role=r, axis=axis, parts=parts, tensors=n) for (r, axis, parts), n in rows.items()]

    @property
    def bytes_moved(self) -> int | None:
        """What the compiled decode step moves; None where it was not compiled."""
        step = self.compilation.steps.get("decode")
        if step is None:
            return None
        request = self.request
        used = [layer.sequences_each(request.batch) * layer.bytes_in_use(request.context) for layer in self.cache]
        return step.all_bytes_moved([w + kv for w, kv in zip(self._layer_weights, used, strict=True)])

    @property
    def _layer_weights(self) -> list[int]:
        """The weights of each layer."""
        sums: collections.Counter[int] = collections.Counter()
        for weight in self.weights:
            if weight.name.startswith("blk."):
                sums[int(weight.name.split(".", 2)[1])] += weight.bytes
        return [sums[i] for i in range(len(self.cache))]


def default_context(file: GGUFFile) -> int:
    """The context that a plan is made for unless told."""
    return min(DEFAULT_CONTEXT, models.config_of(file).context_length)


def make_plan(file: GGUFFile, request: PlanRequest, compilation: Compilation) -> Plan:
    """The plan of a model whose file may be open for its header alone."""
    config = models.config_of(file, max_model_len=request.context)
    implementation = request.implementation
    model = models.build(file, config=config, dtype=jnp.bfloat16, implementation=implementation, abstract=True)
    limits: dict[str, Any] = {"context": request.context, "batch": request.batch, "dtype": request.kv_cache_dtype}
    weights = weight_sizes(file, layout_name(implementation), request.mesh)
    cache = cache_layers(model.cache_spec(), request.mesh, **limits)
    return Plan(
        request=request,
        config=config,
        file_bytes=sum(tensor.nbytes for tensor in file.tensors.values()),
        weights=weights,
        cache=cache,
        work=Work.of(model, weights, cache),
        fallbacks=models.fallbacks(file, implementation),
        compilation=compilation,
    )
