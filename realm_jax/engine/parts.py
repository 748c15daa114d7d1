"""ModelParts: a model taken apart into what can be loaded, compiled and run by itself - embed, layers, head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from realm_jax.engine.batch import BatchShape, unpack_batch
from realm_jax.models import CausalLM
from realm_jax.nn import Recorder, Taps
from realm_jax.nn.decoder import DecoderLayer
from realm_jax.quant import MappedTensor, QTensor, aval_of, mapped

_TILE_ROWS = 128  # that a piece of the head has a multiple of: whole tiles in every layout
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerPart:
    """A layer: its leaves, MappedTensors among them, and what it takes of a step.

    Layers with equal `form` compute the same function of other leaves.
    """

    leaves: list[Any]
    treedef: Any
    graphdef: Any
    form: int
    rope: int
    scope: str


class ModelParts:
    """The parts of a model that was built with `mapped=True`, and the functions that they compute.

    Functions are pure, and take leaves as arguments. `small` are the leaves outside layers that are in memory anyway:
    norms and frequencies. Every `captured` is a dict of activations by name.
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._graphdef, state = nnx.split(model)
        with_path, self._treedef = jax.tree_util.tree_flatten_with_path(state)
        self._placeholders = [leaf for _, leaf in with_path]
        self._small_at = [
            i
            for i, (path, leaf) in enumerate(with_path)
            if not isinstance(leaf, MappedTensor) and path[0] != jax.tree_util.DictKey("layers")
        ]
        self.small = [self._placeholders[i] for i in self._small_at]
        self.resident_bytes = sum(leaf.nbytes for leaf in self._placeholders if not isinstance(leaf, MappedTensor))
        self.layers = _layers(model)
        self.table: MappedTensor = model.embed_tokens.weight.get_value().data
        self.tied = model.lm_head is None
        largest = max(sum(leaf.nbytes for leaf in layer.leaves) for layer in self.layers)
        self.head = list(_pieces(model.head_map.weight.get_value().data, largest))
        self.dtype, self.vocab_size = model.dtype, model.config.vocab_size

    def embed(self, shape: BatchShape, taps: Taps) -> Function:
        """`(rows, small, buffer) -> x, rope tables, captured`; `rows`: the embeddings of the batch's tokens."""

        def embed(rows: QTensor, small: list[jax.Array], buffer: jax.Array) -> tuple[jax.Array, Any, Any]:
            model, batch = self._shell(small), unpack_batch(buffer, shape)
            tap = Recorder(taps, batch.edit_ids)
            model.embed_tokens.weight.set_value(rows)
            tables = [rope(batch.positions, implementation=model.implementation) for rope in model.ropes]
            own = dataclasses.replace(batch, tokens=jnp.arange(shape.tokens))
            return tap("embed", model.embed(own)), tables, tap.captured

        return embed

    def layer(self, layer: LayerPart, shape: BatchShape, taps: Taps) -> Function:
        """`(leaves, cache, x, rope table, buffer) -> x, cache, captured`; `taps` are those within the layer."""

        def run(leaves: Any, cache: Any, x: jax.Array, table: Any, buffer: jax.Array) -> tuple[Any, Any, Any]:
            module = nnx.merge(layer.graphdef, jax.tree.unflatten(layer.treedef, leaves))
            batch = unpack_batch(buffer, shape)
            tap = Recorder(taps, batch.edit_ids)
            x, cache = module(x, cache, batch.paged(module.config.group), table, tap)
            return x, cache, tap.captured

        return run

    def choose_rows(self, shape: BatchShape, taps: Taps) -> Function:
        """`(small, x, buffer) -> rows that enter the head, captured`."""

        def choose_rows(small: list[jax.Array], x: jax.Array, buffer: jax.Array) -> tuple[jax.Array, Any]:
            batch = unpack_batch(buffer, shape)
            tap = Recorder(taps, batch.edit_ids)
            hidden = self._shell(small).enter_head(x, batch.logits_indices, tap)
            return hidden, tap.captured

        return choose_rows

    def project(self, taps: Taps) -> Function:
        """`(piece, small, rows) -> the head's product with one of its pieces`."""

        def project(piece: QTensor, small: list[jax.Array], hidden: jax.Array) -> jax.Array:
            model = self._shell(small)
            model.head_map.weight.set_value(piece)
            return model.project_head(hidden, Recorder(taps))

        return project

    def logits(self, products: Sequence[jax.Array], rows: int, tap: Recorder) -> jax.Array:
        """The logits `[rows, vocab]` that the products with all pieces make; none is needed for no rows."""
        whole = jnp.concatenate(products, axis=1) if rows else jnp.zeros((0, self.vocab_size), self.dtype)
        return self._model.finish_head(whole, tap)

    def _shell(self, small: list[jax.Array]) -> CausalLM:
        """The model with these small leaves; its weights are placeholders."""
        leaves = list(self._placeholders)
        for at, leaf in zip(self._small_at, small, strict=True):
            leaves[at] = leaf
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))


def form_of(layer: DecoderLayer) -> Hashable:
    """What layers have in common that compute the same function of leaves of the same shapes and types."""
    graphdef, state = nnx.split(layer)
    leaves, treedef = jax.tree.flatten(state)
    return graphdef, treedef, tuple(aval_of(leaf) for leaf in leaves)


def _layers(model: CausalLM) -> list[LayerPart]:
    forms: dict[Any, int] = {}
    parts = []
    for i, layer in enumerate(model.layers):
        graphdef, state = nnx.split(layer)
        leaves, treedef = jax.tree.flatten(state)
        number = forms.setdefault(form_of(layer), len(forms))
        parts.append(
            LayerPart(
                leaves=leaves,
                treedef=treedef,
                graphdef=graphdef,
                form=number,
                rope=layer.config.rope,
                scope=f"layers.{i}",
            )
        )
    return parts


def _pieces(weight: MappedTensor, size: int) -> Iterator[QTensor]:
    """A matrix in pieces of equal rows and about `size` bytes, except that the last may be smaller."""
    total = weight.raw.shape[0]
    tiles = max(1, size * total // (weight.nbytes * _TILE_ROWS))
    pieces = -(-total // (tiles * _TILE_ROWS))
    rows = -(-total // (pieces * _TILE_ROWS)) * _TILE_ROWS
    for first in range(0, total, rows):
        yield mapped(weight.raw.rows(first, min(first + rows, total)), weight.layout)
