"""CausalLM: what every decoder-only family shares - embed, a list of layers, a head - and the pure forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from realm_jax.models.batch import ForwardBatch, LayerCache
from realm_jax.models.config import ModelConfig
from realm_jax.nn.decoder import DecoderLayer
from realm_jax.nn.linear import Embedding, Linear, apply_together
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.rope import Rope
from realm_jax.nn.taps import NO_TAPS, Recorder, Taps
from realm_jax.nn.weights import Weights
from realm_jax.ops.paging import KVCache, PagedBatch
from realm_jax.ops.rope import RopeTable
from realm_jax.sharding import constrain

# The share of all weights up to which native kernels round the head's activations more finely.
_LARGEST_FINE_HEAD = 0.25


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """`logits float32[L, vocab]`, the updated cache, and the captured activations by name."""

    logits: Any
    cache: Any
    captured: Any


class CausalLM(nnx.Module):
    """A decoder-only language model as a pure function of its weights, a batch and a cache.

    `nnx.split(model)` gives a graphdef and a state to jit, vmap, shard or differentiate. Activation points:
    `embed`, `layers.N.*`, `final_norm`, `logits`.
    """

    def __init__(
        self, weights: Weights, config: ModelConfig, layers: Sequence[DecoderLayer], ropes: Sequence[Rope], dtype: Any
    ) -> None:
        """Take the embeddings, final norm and head; `layers` and `ropes` are the family's."""
        vocab, hidden = config.vocab_size, config.hidden_size
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.implementation = weights.implementation
        self.embed_tokens = Embedding(weights, "token_embd", (vocab, hidden))
        self.ropes = nnx.List(ropes)
        self.layers = nnx.List(layers)
        self.norm = RMSNorm(weights, "output_norm", hidden, config.norm_eps)
        self.lm_head = None if config.tied_embeddings else Linear(weights, "output", (hidden, vocab))
        # One row a sequence passes the head, however long its prompt: where the head is a small part of the model,
        # more arithmetic there goes unnoticed, and rounding there reaches the logits undamped.
        small = _LARGEST_FINE_HEAD * weights.total_elements
        self.head_activation_group: Literal[16, 32] = 16 if vocab * hidden <= small else 32

    def cache_spec(self) -> tuple[LayerCache, ...]:
        """What each layer keeps in the KV cache."""
        return tuple(LayerCache.of(layer.config, self.implementation) for layer in self.layers)

    def __call__(self, batch: ForwardBatch, cache: Sequence[KVCache], taps: Taps = NO_TAPS) -> ModelOutput:
        """One step: write the batch's keys and values, return logits of `batch.logits_indices`.

        `cache` holds one buffer per layer, `LayerCache.array`; donate it, and use the returned one from then on.
        """
        tap = Recorder(taps, batch.edit_ids)
        x = tap("embed", self.embed(batch))
        x, cache = self.run_layers(x, cache, batch, tap)
        return ModelOutput(logits=self.head(x, batch.logits_indices, tap), cache=cache, captured=tap.captured)

    def embed(self, batch: ForwardBatch) -> jax.Array:
        """The residual stream `[T, hidden]` that enters the first layer."""
        if batch.input_embeds is not None:
            return batch.input_embeds.astype(self.dtype)
        x = self.embed_tokens(batch.tokens, self.dtype)
        scale = self.config.embedding_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, self.dtype)

    def run_layers(
        self, x: jax.Array, cache: Sequence[KVCache], batch: ForwardBatch, tap: Recorder
    ) -> tuple[jax.Array, list[KVCache]]:
        """The residual stream after all layers, and their caches. Equal layers are traced once."""
        tables = [rope(batch.positions, implementation=self.implementation) for rope in self.ropes]
        written = []
        for i, (layer, kv) in enumerate(zip(self.layers, cache, strict=True)):
            graphdef, state = nnx.split(layer)
            scope = f"layers.{i}"
            x, kv, captured = _layer_step(
                graphdef,
                tap.taps.scope(scope),
                state,
                x,
                kv,
                batch.paged(layer.config.group),
                tables[layer.config.rope],
                tap.edit_ids,
            )
            tap.merge(scope, captured)
            written.append(kv)
        return x, written

    def head(self, x: jax.Array, rows: jax.Array, tap: Recorder) -> jax.Array:
        """`float32[L, vocab]` logits of the chosen rows of the residual stream."""
        return self.finish_head(self.project_head(self.enter_head(x, rows, tap), tap), tap.at_rows(rows))

    def enter_head(self, x: jax.Array, rows: jax.Array, tap: Recorder) -> jax.Array:
        """The chosen rows of the residual stream; after the final norm where that is looked at."""
        x = constrain(x, None, "hidden")  # rows are taken out of all tokens
        return tap("final_norm", self.norm(x))[rows] if tap.wants("final_norm") else x[rows]

    def project_head(self, hidden: jax.Array, tap: Recorder) -> jax.Array:
        """The head's product with what `enter_head` returned, `[L, vocab]`."""
        norm = None if tap.wants("final_norm") else self.norm
        (product,) = apply_together([self.head_map], hidden, norm, activation_group=self.head_activation_group)
        return product

    def finish_head(self, product: jax.Array, tap: Recorder) -> jax.Array:
        """The logits that a product stands for; `tap` is the chosen rows'."""
        # Sampling looks at whole rows, and is the same on every device.
        logits = constrain(product, None, None).astype(jnp.float32) * self.config.logit_scale
        cap = self.config.final_logit_softcap
        return tap("logits", logits if cap is None else cap * jnp.tanh(logits / cap))

    @property
    def head_map(self) -> Linear | Embedding:
        """The module whose weights are the head's: the embeddings where they are tied."""
        return self.embed_tokens if self.lm_head is None else self.lm_head


@partial(jax.jit, static_argnums=(0, 1))
def _layer_step(
    graphdef: Any,
    taps: Taps,
    state: Any,
    x: jax.Array,
    cache: KVCache,
    batch: PagedBatch,
    rope: RopeTable,
    edit_ids: jax.Array | None,
) -> tuple[jax.Array, KVCache, dict[str, jax.Array]]:
    tap = Recorder(taps, edit_ids)
    x, cache = nnx.merge(graphdef, state)(x, cache, batch, rope, tap)
    return x, cache, tap.captured
