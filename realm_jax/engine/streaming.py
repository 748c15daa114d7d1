"""StreamingRunner: runs a model whose weights stay in the file, part by part through a window of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from realm_jax.engine.batch import BatchShape, SequenceSlice, edit_ids_of_rows, pack_batch, tokens_of, unpack_batch
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.parts import Function, ModelParts
from realm_jax.engine.placement import donatable, on_this_device
from realm_jax.engine.runner import Runner, StepInput, StepKey, abstract, avals
from realm_jax.engine.steps import Sampling, sample_logits
from realm_jax.engine.window import Window, least_memory
from realm_jax.models import CausalLM, ModelOutput
from realm_jax.nn import NO_TAPS, Recorder, Taps
from realm_jax.ops import KVCache
from realm_jax.quant import aval_of
from realm_jax.sampling import SampleOutput, SamplingPlan

_Captured = dict[str, jax.Array]


class StreamingRunner(Runner):
    """A Runner for a model built with `mapped=True`, whose weights take at most `max_weight_memory` bytes.

    The embeddings of a step's tokens are gathered on the host. Each layer is one call of a compiled program, which
    layers of equal form share; the head is cut into pieces of about a layer's size. A step gives each sequence one
    token: several in a row would read all weights as often.

    Raises:
        ValueError: `max_weight_memory` is too little for this model; the message names the least that is enough.
    """

    def __init__(
        self, model: CausalLM, size: CacheSize, *, block_size: int, kv_cache_dtype: str, max_weight_memory: int
    ) -> None:
        self._parts = ModelParts(model)
        self.window = _window(self._parts, max_weight_memory)
        super().__init__(model, size, block_size=block_size, kv_cache_dtype=kv_cache_dtype)
        self._head = range(len(self._parts.layers), len(self._parts.layers) + len(self._parts.head))
        # Tied embeddings are the head: what stays in memory of that must not be given back.
        kept = [self._parts.tied and self.window.keeps_pages(part) for part in self._head]
        pieces = [leaf.raw for piece in self._parts.head for leaf in jax.tree.leaves(piece)]
        loose = [raw for raw, stays in zip(pieces, kept, strict=True) if not stays]
        self._given_back = loose if any(kept) else [self._parts.table.raw]

    def step(self, given: StepInput, taps: Taps = NO_TAPS) -> tuple[SampleOutput | None, Any, Any]:
        """Launch a step, as `Runner.step` does; it waits for the tokens of the step before."""
        if given.steps > 1:
            raise ValueError(f"decode_steps must be 1 where weights stream through memory, got {given.steps}")
        shape = given.shape
        buffer = pack_batch(given.slices, shape, self.block_size)
        _resolve(tokens_of(buffer, shape), given.previous)
        x, _ = self._run_layers(buffer, self.cache, shape, taps)
        if given.plan is None or given.sampling is None:
            return None, given.previous, None
        sampling = given.sampling if given.mask is None else given.sampling.with_mask(given.mask())
        products, _ = self._run_head(x, buffer, shape, taps)
        operands = (products, given.previous, sampling, edit_ids_of_rows(buffer, shape))
        function = self._sample(shape.rows, given.plan, taps)
        return self._call(("sample", shape.rows, given.plan, taps, avals(operands)), function, operands)

    def evaluate(
        self,
        slices: Sequence[SequenceSlice],
        cache: list[KVCache],
        function: Callable[..., Any],
        taps: Taps = NO_TAPS,
        operands: Any = (),
    ) -> tuple[Any, list[KVCache]]:
        """Run the slices on a private cache, as `Runner.evaluate` does; `function` sees an output without a cache."""
        shape = self.buckets.shape(slices, pages=len(slices[0].block_tables[0]))
        buffer, cache = pack_batch(slices, shape, self.block_size), list(cache)
        x, captured = self._run_layers(buffer, cache, shape, taps)
        products, more = self._run_head(x, buffer, shape, taps)

        def finish(products: list[jax.Array], captured: _Captured, buffer: jax.Array, operands: Any) -> Any:
            tap = Recorder(taps)
            logits = self._parts.logits(products, shape.rows, tap)
            output = ModelOutput(logits=logits, cache=(), captured=captured | tap.captured)
            return function(output, unpack_batch(buffer, shape), *operands)

        given = (products, captured | more, buffer, operands)
        return self._call(("finish", shape, taps, function, avals(given)), finish, given), cache

    def prepare(self, keys: Iterable[StepKey]) -> list[Future[Any]]:
        """Begin to compile steps on other threads, as `Runner.prepare` does."""
        return [self._threads.submit(on_this_device(self._compile_step), key) for key in keys]

    def _run_layers(
        self, buffer: np.ndarray, cache: list[KVCache], shape: BatchShape, taps: Taps
    ) -> tuple[jax.Array, _Captured]:
        """The residual stream after all layers, and what was captured; each layer's entry of `cache` is replaced."""
        parts = self._parts
        rows = parts.table.take_rows(tokens_of(buffer, shape))
        for raw in self._given_back:
            raw.release()
        x, tables, captured = self._call(("embed", shape, taps), parts.embed(shape, taps), (rows, parts.small, buffer))
        for i, layer in enumerate(parts.layers):
            inside = taps.scope(layer.scope)
            operands = (self.window.enter(i), cache[i], x, tables[layer.rope], buffer)
            key = ("layer", layer.form, shape, inside, avals(cache[i]))
            x, cache[i], found = self._call(key, parts.layer(layer, shape, inside), operands, donate=1)
            self.window.leave(i, after=x)
            captured |= {f"{layer.scope}.{name}": value for name, value in found.items()}
        return x, captured

    def _run_head(
        self, x: jax.Array, buffer: np.ndarray, shape: BatchShape, taps: Taps
    ) -> tuple[list[jax.Array], _Captured]:
        """The products of the wanted rows with each piece of the head, and what was captured."""
        parts = self._parts
        rows, captured = self._call(("rows", shape, taps), parts.choose_rows(shape, taps), (parts.small, x, buffer))
        products = []
        for part, piece in zip(self._head if shape.rows else (), parts.head, strict=False):
            key = ("project", piece.shape, rows.shape, taps)
            operands = (self.window.enter(part), parts.small, rows)
            products.append(self._call(key, parts.project(taps), operands))
            self.window.leave(part, after=products[-1])
        return products, captured

    def _compile_step(self, key: StepKey) -> None:
        """Compile all programs of a step, from shapes alone."""
        parts, shape, taps = self._parts, key.shape, key.taps
        buffer = jax.ShapeDtypeStruct((shape.size,), np.int32)
        embed, operands = parts.embed(shape, taps), (parts.table.abstract_rows(shape.tokens), parts.small, buffer)
        self._compiled(("embed", shape, taps), embed, operands)
        x, tables, _ = jax.eval_shape(embed, *operands)
        for layer, cache in zip(parts.layers, self.cache, strict=True):
            inside = taps.scope(layer.scope)
            operands = (_abstract(layer.leaves), _abstract(cache), x, tables[layer.rope], buffer)
            name = ("layer", layer.form, shape, inside, avals(cache))
            self._compiled(name, parts.layer(layer, shape, inside), operands, donate=1)
        if key.plan is None:
            return
        choose, operands = parts.choose_rows(shape, taps), (parts.small, x, buffer)
        self._compiled(("rows", shape, taps), choose, operands)
        rows, _ = jax.eval_shape(choose, *operands)
        project, products = parts.project(taps), []
        for piece in parts.head:
            operands = (_abstract(piece), parts.small, rows)
            self._compiled(("project", piece.shape, rows.shape, taps), project, operands)
            products.append(jax.eval_shape(project, *operands))
        previous, sampling, _ = abstract(key.operands)
        edit_ids = jax.ShapeDtypeStruct((shape.rows,), np.int32) if shape.edits else None
        operands = (products, previous, sampling, edit_ids)
        name = ("sample", shape.rows, key.plan, taps, avals(operands))
        self._compiled(name, self._sample(shape.rows, key.plan, taps), operands)

    def _sample(self, rows: int, plan: SamplingPlan, taps: Taps) -> Function:
        sampling = Sampling(plan=plan, implementation=self._implementation)

        def sample(
            products: list[jax.Array], previous: jax.Array, requests: Any, edit_ids: jax.Array | None
        ) -> tuple[SampleOutput, Any, Any]:
            logits = self._parts.logits(products, rows, Recorder(taps, edit_ids))
            return sample_logits(sampling, logits, previous, requests)

        return sample

    def _call(self, key: Any, function: Function, operands: tuple[Any, ...], donate: int | None = None) -> Any:
        return self._compiled(key, function, operands, donate)(*operands)

    def _compiled(self, key: Any, function: Function, operands: tuple[Any, ...], donate: int | None = None) -> Any:
        donated = donatable(() if donate is None else (donate,))
        return self._program(key, lambda _: jax.jit(function, donate_argnums=donated).lower(*operands))


def _window(parts: ModelParts, memory: int) -> Window:
    streamed = [*(layer.leaves for layer in parts.layers), *parts.head]
    least = parts.resident_bytes + least_memory(streamed)
    if memory < least:
        raise ValueError(
            f"max_weight_memory must be at least {least} bytes for this model, of which two layers are in memory at a "
            f"time, got {memory}"
        )
    return Window(streamed, memory - parts.resident_bytes)


def _resolve(tokens: np.ndarray, previous: Any) -> None:
    """Replace each token -1 - r by `previous[r]`, in place; the host needs it to gather the token's embedding."""
    unknown = tokens < 0
    if unknown.any():
        tokens[unknown] = np.asarray(previous)[-1 - tokens[unknown]]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(aval_of, tree)
