"""Runner: the compiled programs of a model, one per bucket. The only jit site on the serving path."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from realm_jax.engine.batch import BatchShape, Buckets, SequenceSlice, pack_batch, resolve_tokens, unpack_batch
from realm_jax.engine.blocks import BlockCopy, BlockGroup
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.placement import Given, Placement, on_this_device
from realm_jax.engine.steps import Limits, Row, Sampling, copy_blocks, decode_in_a_row, sample_logits, sample_once
from realm_jax.models import CausalLM, ForwardBatch, ModelOutput
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.ops import KVCache, empty_kv_cache
from realm_jax.ops.backends import is_metal
from realm_jax.quant import aval_of
from realm_jax.sampling import SampleOutput, SamplingBatch, SamplingPlan

Avals = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]
"""A tree's structure, and shape and dtype of each of its arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKey:
    """What makes a step's program: its bucket, its sampling, its taps, and the shapes of the arrays beside the batch.

    `steps`: tokens of each sequence, one after the other.
    """

    shape: BatchShape
    plan: SamplingPlan | None
    taps: Taps
    operands: Avals
    steps: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepInput:
    """One launch: the slices, their bucket, how to sample after them, and the tokens that the launch before sampled.

    `previous int32[n]` may still be on its way on the device. `limits` belong to several steps in a row, which may end
    sooner by them. `mask` makes the rows of a masked plan; it is called while the device already runs the model.
    """

    slices: Sequence[SequenceSlice]
    shape: BatchShape
    previous: Any
    sampling: SamplingBatch | None = None
    plan: SamplingPlan | None = None
    limits: Limits | None = None
    mask: Callable[[], np.ndarray] | None = None
    steps: int = 1


class Runner:
    """Holds a model's weights and KV caches as flat leaves and runs steps on them.

    Calls are serialised by the caller; compiling may happen from several threads. `user` is whoever wrote to the cache
    last: nobody else knows what it holds.

    On a `mesh`, over which the model's weights are split, every process makes the same calls, and what comes back is
    the same everywhere.
    """

    def __init__(
        self, model: CausalLM, size: CacheSize, *, block_size: int, kv_cache_dtype: str, mesh: Mesh | None = None
    ) -> None:
        self.graphdef, state = nnx.split(model)
        leaves, self._treedef = jax.tree.flatten(state)
        self.spec = model.cache_spec()
        self._implementation = model.implementation
        self.block_size = block_size
        self.kv_cache_dtype = kv_cache_dtype
        self.placement = Placement(mesh=mesh, cache=[] if mesh is None else self._cache_shardings(mesh))
        self.leaves = self.placement.weights(leaves)
        self.max_model_len = size.max_model_len
        self.vocab_size = model.config.vocab_size
        groups = 1 + max(layer.group for layer in self.spec)
        self.num_blocks = size.num_blocks * groups if len(size.num_blocks) == 1 else size.num_blocks
        if len(self.num_blocks) != groups:
            raise ValueError(f"num_blocks must be given for each of {groups} groups of layers, got {size.num_blocks}")
        self.buckets = Buckets(
            max_model_len=self.max_model_len,
            block_size=block_size,
            groups=groups,
            reads_whole_tables=is_metal(self._implementation),
        )
        self.user: object = None
        self.cache = self.new_cache(self.num_blocks)
        self._programs: dict[Any, Future[Any]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(thread_name_prefix="compile")

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far; a steady state adds none."""
        return len(self._programs)

    @property
    def groups(self) -> tuple[BlockGroup, ...]:
        """What the layers that share a block table keep: a window only where all of them have one."""
        found = []
        for number, num_blocks in enumerate(self.num_blocks):
            windows = [layer.window for layer in self.spec if layer.group == number]
            widest = None if None in windows else max((w for w in windows if w is not None), default=None)
            found.append(BlockGroup(num_blocks=num_blocks, window=widest))
        return tuple(found)

    def new_cache(self, num_blocks: int | Sequence[int]) -> list[KVCache]:
        """Empty KV buffers, one a layer."""
        counts = [num_blocks if isinstance(num_blocks, int) else num_blocks[layer.group] for layer in self.spec]
        arrays = [
            layer.array(count, self.block_size, self.kv_cache_dtype)
            for layer, count in zip(self.spec, counts, strict=True)
        ]
        if self.placement.mesh is None:
            return empty_kv_cache(arrays, implementation=self._implementation)
        return self.placement.zeros(arrays)

    def _cache_shardings(self, mesh: Mesh) -> list[Any]:
        arrays = [layer.array(1, self.block_size, self.kv_cache_dtype) for layer in self.spec]
        return [layer.shardings(array, mesh) for layer, array in zip(self.spec, arrays, strict=True)]

    def step(self, given: StepInput, taps: Taps = NO_TAPS) -> tuple[SampleOutput | None, Any, Any]:
        """Launch a step: what was sampled at each wanted row, or None, and for the next launch the newest tokens, and
        the history of each row where the plan looks at it.

        All may still be on their way when this returns. With `steps` above 1 each slice is the newest token of a
        sequence; the sampled ones are run in turn, and every array of the output has a leading axis of steps.
        """
        if given.mask is not None and given.sampling is not None and given.plan is not None:
            return self._masked_step(given, given.sampling, given.plan, given.mask, taps)
        key = self.step_key(given, taps)
        program = self._program(key, self._sampling_step)
        buffer = pack_batch(given.slices, key.shape, self.block_size)
        operands = (given.previous, given.sampling, given.limits)
        output, newest, history, self.cache = program(self.leaves, self.cache, buffer, operands)
        return output, newest, history

    def _masked_step(
        self,
        given: StepInput,
        sampling: SamplingBatch,
        plan: SamplingPlan,
        mask: Callable[[], np.ndarray],
        taps: Taps,
    ) -> tuple[SampleOutput, Any, Any]:
        """The model and the sampling as two programs, with the mask made between their launches."""
        shape = given.shape
        key = StepKey(shape=shape, plan=None, taps=taps, operands=avals(given.previous))
        forward = self._program(("forward", key), lambda _: self._forward(key))
        buffer = pack_batch(given.slices, shape, self.block_size)
        logits, self.cache = forward(self.leaves, self.cache, buffer, given.previous)
        operands = (logits, given.previous, sampling.with_mask(mask()))
        program = self._program(("sample", plan, avals(operands)), self._sampling)
        return program(*operands)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks of the cache to others."""
        size = 1 << (len(copies) - 1).bit_length()
        pairs = np.zeros((len(self.num_blocks), size, 2), np.int32)
        for i, copy in enumerate(copies):
            pairs[copy.group, i] = copy.source, copy.target
        program = self._program(("copy", size), self._copying)
        self.cache = program(self.cache, pairs)

    def evaluate(
        self,
        slices: Sequence[SequenceSlice],
        cache: list[KVCache],
        function: Callable[..., Any],
        taps: Taps = NO_TAPS,
        operands: Any = (),
    ) -> tuple[Any, list[KVCache]]:
        """Run the slices on a private cache; inside the jit `function(output, batch, *operands)` picks what comes back.

        The slices' block tables all have the width that the step uses; `operands` are arrays.
        """
        shape = self.buckets.shape(slices, pages=len(slices[0].block_tables[0]))
        key = (shape, taps, function, avals((cache, operands)))
        program = self._program(key, self._evaluation)
        return program(self.leaves, cache, pack_batch(slices, shape, self.block_size), operands)

    def captured_names(self, taps: Taps) -> tuple[str, ...]:
        """The activation points that `taps` captures, in the order of the forward pass; nothing is computed."""
        part = SequenceSlice(tokens=(0,), start=0, block_tables=((1,),), rows=(0,))
        shape = self.buckets.shape([part], pages=1)
        names: list[str] = []

        def forward(leaves: Any, cache: Any, buffer: jax.Array) -> None:
            names.extend(self._model(leaves)(unpack_batch(buffer, shape), cache, taps).captured)

        cache = [layer.array(2, self.block_size, self.kv_cache_dtype) for layer in self.spec]
        leaves = [aval_of(leaf) for leaf in self.leaves]
        jax.eval_shape(forward, leaves, cache, jax.ShapeDtypeStruct((shape.size,), np.int32))
        return tuple(names)

    def step_key(self, given: StepInput, taps: Taps) -> StepKey:
        """The program that `step` runs for these arguments."""
        operands = avals((given.previous, given.sampling, given.limits))
        return StepKey(shape=given.shape, plan=given.plan, taps=taps, operands=operands, steps=given.steps)

    def restore_cache(self) -> None:
        """Empty caches in place of those that a step which failed took along."""
        if any(array.is_deleted() for array in jax.tree.leaves(self.cache)):
            self.cache = self.new_cache(self.num_blocks)

    def prepare(self, keys: Iterable[StepKey]) -> list[Future[Any]]:
        """Begin to compile steps on other threads; a step that needs one of them waits for it.

        Errors come up where a program is used, or in `result()` of what is returned.
        """
        return [self._threads.submit(on_this_device(self._program), key, self._sampling_step) for key in keys]

    def prepare_copies(self, most: int) -> list[Future[Any]]:
        """Begin to compile the copies of up to `most` blocks, likewise."""
        sizes = [1 << power for power in range((most - 1).bit_length() + 1)]
        return [self._threads.submit(on_this_device(self._program), ("copy", size), self._copying) for size in sizes]

    def _program(self, key: Any, lower: Callable[[Any], Any]) -> Any:
        """The program of a key, compiled once, by the first to ask for it; one that fails is tried again."""
        with self._lock:
            future = self._programs.get(key)
            mine = future is None
            if future is None:
                future = self._programs[key] = Future()
        if mine:
            try:
                future.set_result(lower(key).compile())
            except BaseException as error:
                with self._lock:
                    del self._programs[key]
                future.set_exception(error)
        return future.result()

    def _sampling_step(self, key: StepKey) -> Any:
        def step(leaves: Any, cache: Any, buffer: jax.Array, operands: Any) -> tuple[Any, ...]:
            batch = unpack_batch(buffer, key.shape)

            def model(batch: ForwardBatch, cache: Any) -> ModelOutput:
                return self._model(leaves)(batch, cache, key.taps)

            if key.plan is None:
                return None, operands[0], None, model(resolve_tokens(batch, operands[0]), cache).cache
            sampling = Sampling(plan=key.plan, implementation=self._implementation)
            if key.steps == 1:
                return sample_once(model, batch, cache, operands, sampling)
            row = Row(steps=key.steps, vocab_size=self.vocab_size, block_size=self.block_size)
            return decode_in_a_row(model, batch, cache, operands, sampling, row)

        buffer = jax.ShapeDtypeStruct((key.shape.size,), np.int32)
        operands = abstract(key.operands)
        given: list[Given] = [("weights", self.leaves), ("cache", self.cache), ("same", buffer), ("same", operands)]
        return self.placement.lower(step, given, ("same", "same", "same", "cache"))

    def _forward(self, key: StepKey) -> Any:
        def forward(leaves: Any, cache: Any, buffer: jax.Array, previous: jax.Array) -> tuple[Any, Any]:
            batch = resolve_tokens(unpack_batch(buffer, key.shape), previous)
            output = self._model(leaves)(batch, cache, key.taps)
            return output.logits, output.cache

        buffer = jax.ShapeDtypeStruct((key.shape.size,), np.int32)
        previous = abstract(key.operands)
        given: list[Given] = [("weights", self.leaves), ("cache", self.cache), ("same", buffer), ("same", previous)]
        return self.placement.lower(forward, given, ("same", "cache"))

    def _sampling(self, key: tuple[str, SamplingPlan, Any]) -> Any:
        _, plan, operands = key
        sampling = Sampling(plan=plan, implementation=self._implementation)
        given: list[Given] = [("same", operand) for operand in abstract(operands)]
        return self.placement.lower(partial(sample_logits, sampling), given, ("same", "same", "same"))

    def _copying(self, key: tuple[str, int]) -> Any:
        groups = [layer.group for layer in self.spec]
        pairs = jax.ShapeDtypeStruct((len(self.num_blocks), key[1], 2), np.int32)

        def copying(cache: Any, pairs: jax.Array) -> list[KVCache]:
            return copy_blocks(cache, pairs, groups)

        return self.placement.lower(copying, (("cache", self.cache), ("same", pairs)), ("cache",))

    def _evaluation(self, key: Any) -> Any:
        shape, taps, function, described = key

        def evaluate(leaves: Any, cache: Any, buffer: jax.Array, operands: Any) -> tuple[Any, Any]:
            batch = unpack_batch(buffer, shape)
            output: ModelOutput = self._model(leaves)(batch, cache, taps)
            return function(output, batch, *operands), output.cache

        buffer = jax.ShapeDtypeStruct((shape.size,), np.int32)
        cache, operands = abstract(described)
        given: list[Given] = [("weights", self.leaves), ("cache", cache), ("same", buffer), ("same", operands)]
        return self.placement.lower(evaluate, given, ("same", "cache"))

    def _model(self, leaves: list[jax.Array]) -> CausalLM:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self._treedef, leaves))


def avals(tree: Any) -> Avals:
    """A hashable description of a tree of arrays, from which its abstract form can be rebuilt."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple([(leaf.shape, leaf.dtype) for leaf in leaves])


def abstract(described: Avals) -> Any:
    """The tree of array shapes that `avals` has described."""
    treedef, leaves = described
    return jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
