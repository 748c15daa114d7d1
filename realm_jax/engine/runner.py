"""Runner: the compiled programs of a model, one per bucket. The only jit site on the serving path."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from realm_jax.engine.batch import BatchShape, Buckets, SequenceSlice, advance, pack_batch, unpack_batch
from realm_jax.models import CausalLM, ModelOutput
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.ops import empty_kv_cache
from realm_jax.sampling import SampleOutput, SamplingBatch, SamplingPlan, sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKey:
    """What makes a sampling step's program: its bucket, its sampling, its taps and the sampling arrays' shapes.

    `steps`: tokens of each sequence, one after the other.
    """

    shape: BatchShape
    plan: SamplingPlan | None
    taps: Taps
    sampling: Any
    steps: int = 1


class Runner:
    """Holds a model's weights and KV caches as flat leaves and runs steps on them.

    Calls are serialised by the caller; compiling may happen from several threads.
    """

    def __init__(
        self, model: CausalLM, *, num_blocks: int, block_size: int, max_model_len: int, kv_cache_dtype: str
    ) -> None:
        self.graphdef, state = nnx.split(model)
        self.leaves, self._treedef = jax.tree.flatten(state)
        self.spec = model.cache_spec()
        self._implementation = model.implementation
        self.num_blocks, self.block_size = num_blocks, block_size
        self.kv_cache_dtype = kv_cache_dtype
        self.max_model_len = max_model_len
        groups = 1 + max(layer.group for layer in self.spec)
        self.buckets = Buckets(max_model_len=max_model_len, block_size=block_size, groups=groups)
        self.cache = self.new_cache(num_blocks)
        self._programs: dict[Any, Any] = {}
        self._lock = threading.Lock()

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far; a steady state adds none."""
        return len(self._programs)

    def new_cache(self, num_blocks: int) -> list[jax.Array]:
        """Empty KV buffers, one a layer."""
        arrays = [layer.array(num_blocks, self.block_size, self.kv_cache_dtype) for layer in self.spec]
        return empty_kv_cache(arrays, implementation=self._implementation)

    def step(
        self,
        slices: Sequence[SequenceSlice],
        sampling: SamplingBatch | None,
        plan: SamplingPlan | None,
        taps: Taps = NO_TAPS,
        steps: int = 1,
    ) -> SampleOutput | None:
        """Run the slices on the pool and sample one token per wanted row, or none where no row is wanted.

        With `steps` above 1 each slice is the newest token of a sequence; the sampled ones are run in turn, and every
        array of the output has a leading axis of steps.
        """
        key = self.step_key(slices, sampling, plan, taps, steps)
        program = self._program(key, self._sampling_step)
        buffer = pack_batch(slices, key.shape, self.block_size)
        output, self.cache = program(self.leaves, self.cache, buffer, sampling)
        return output

    def evaluate(
        self,
        slices: Sequence[SequenceSlice],
        cache: list[jax.Array],
        function: Callable[..., Any],
        taps: Taps = NO_TAPS,
        operands: Any = (),
    ) -> tuple[Any, list[jax.Array]]:
        """Run the slices on a private cache; inside the jit `function(output, batch, *operands)` picks what comes back.

        The slices' block tables all have the width that the step uses; `operands` are arrays.
        """
        shape = self.buckets.shape(slices, pages=len(slices[0].block_table))
        key = (shape, taps, function, _avals((cache, operands)))
        program = self._program(key, self._evaluation)
        return program(self.leaves, cache, pack_batch(slices, shape, self.block_size), operands)

    def captured_names(self, taps: Taps) -> tuple[str, ...]:
        """The activation points that `taps` captures, in the order of the forward pass; nothing is computed."""
        part = SequenceSlice(tokens=(0,), start=0, block_table=(1,), rows=(0,))
        shape = self.buckets.shape([part], pages=1)
        names: list[str] = []

        def forward(leaves: Any, cache: Any, buffer: jax.Array) -> None:
            names.extend(self._model(leaves)(unpack_batch(buffer, shape), cache, taps).captured)

        cache = [layer.array(2, self.block_size, self.kv_cache_dtype) for layer in self.spec]
        jax.eval_shape(forward, self.leaves, cache, jax.ShapeDtypeStruct((shape.size,), np.int32))
        return tuple(names)

    def step_key(
        self,
        slices: Sequence[SequenceSlice],
        sampling: SamplingBatch | None,
        plan: SamplingPlan | None,
        taps: Taps,
        steps: int = 1,
    ) -> StepKey:
        """The program that `step` runs for these arguments."""
        shape = self.buckets.shape(slices, steps=steps)
        shape = dataclasses.replace(shape, rows=0 if plan is None else shape.sequences)
        return StepKey(shape=shape, plan=plan, taps=taps, sampling=_avals(sampling), steps=steps)

    def warm_up(self, keys: Iterable[StepKey]) -> None:
        """Compile steps ahead of time, side by side."""
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(self._program, key, self._sampling_step) for key in keys]:
                done.result()

    def _program(self, key: Any, lower: Callable[[Any], Any]) -> Any:
        program = self._programs.get(key)
        if program is None:
            program = lower(key).compile()
            with self._lock:
                self._programs.setdefault(key, program)
        return program

    def _sampling_step(self, key: StepKey) -> Any:
        def step(leaves: Any, cache: Any, buffer: jax.Array, sampling: Any) -> tuple[SampleOutput | None, Any]:
            batch = unpack_batch(buffer, key.shape)
            plan = key.plan
            if plan is None:
                return None, self._model(leaves)(batch, cache, key.taps).cache
            if key.steps == 1:
                output = self._model(leaves)(batch, cache, key.taps)
                return sample(output.logits, sampling, plan, implementation=self._implementation), output.cache

            def one(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], SampleOutput]:
                batch, cache, sampling = carry
                output = self._model(leaves)(batch, cache, key.taps)
                sampled = sample(output.logits, sampling, plan, implementation=self._implementation)
                batch = advance(batch, sampled.tokens, self.block_size)
                return (batch, output.cache, sampling.next_step()), sampled

            (_, cache, _), sampled = jax.lax.scan(one, (batch, cache, sampling), length=key.steps)
            return sampled, cache

        buffer = jax.ShapeDtypeStruct((key.shape.size,), np.int32)
        sampling = jax.tree.unflatten(*key.sampling) if key.sampling is not None else None
        return jax.jit(step, donate_argnums=1).lower(self.leaves, self.cache, buffer, sampling)

    def _evaluation(self, key: Any) -> Any:
        shape, taps, function, (treedef, avals) = key

        def evaluate(leaves: Any, cache: Any, buffer: jax.Array, operands: Any) -> tuple[Any, Any]:
            batch = unpack_batch(buffer, shape)
            output: ModelOutput = self._model(leaves)(batch, cache, taps)
            return function(output, batch, *operands), output.cache

        buffer = jax.ShapeDtypeStruct((shape.size,), np.int32)
        cache, operands = jax.tree.unflatten(treedef, avals)
        return jax.jit(evaluate, donate_argnums=1).lower(self.leaves, cache, buffer, operands)

    def _model(self, leaves: list[jax.Array]) -> CausalLM:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self._treedef, leaves))


def _avals(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]] | None:
    """A hashable description of a tree of arrays, from which its abstract form can be rebuilt."""
    if tree is None:
        return None
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
