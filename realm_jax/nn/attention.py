"""Grouped-query attention over the paged cache, with the options that families differ in."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.rope import RopeStyle, RopeTable, apply_rope
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.attention import AttentionSpec, attend_with_pattern, attention_pattern, cached_attention
from realm_jax.ops.paging import PagedBatch, write_kv


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Shapes and options of one layer's attention.

    `qk_norm`: "head" normalises each head's q and k over head_dim, "full" normalises all heads' channels together.
    `rope_style` None: no rotation. `scale` None: `head_dim ** -0.5`. `bias`: q, k and v; `output_bias`: the output.
    `fused_qkv`: one tensor holds the rows of q, then k, then v.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_style: RopeStyle | None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    sinks: bool = False
    fused_qkv: bool = False

    @property
    def spec(self) -> AttentionSpec:
        """What the attention operation needs to know."""
        scale = 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale
        return AttentionSpec(scale=scale, window=self.window, softcap=self.softcap)


class Attention(nnx.Module):
    """`o_proj(attention(rope(norm(q)), rope(norm(k)), v))`; keys and values are written to the cache first."""

    def __init__(self, weights: Weights, config: AttentionConfig) -> None:
        self.config = config
        self.implementation = weights.implementation
        hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        if config.fused_qkv:
            self.qkv_proj = Linear(weights, "attn_qkv", (hidden, q_size + 2 * kv_size), bias=config.bias)
        else:
            self.q_proj = Linear(weights, "attn_q", (hidden, q_size), bias=config.bias)
            self.k_proj = Linear(weights, "attn_k", (hidden, kv_size), bias=config.bias)
            self.v_proj = Linear(weights, "attn_v", (hidden, kv_size), bias=config.bias)
        self.o_proj = Linear(weights, "attn_output", (q_size, hidden), bias=config.output_bias)
        if config.qk_norm is not None:
            q_width, k_width = (config.head_dim,) * 2 if config.qk_norm == "head" else (q_size, kv_size)
            self.q_norm = RMSNorm(weights, "attn_q_norm", q_width, config.norm_eps)
            self.k_norm = RMSNorm(weights, "attn_k_norm", k_width, config.norm_eps)
        self.sinks = weights.vector("attn_sinks.weight", (config.num_heads,)) if config.sinks else None

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        cache: Float[Array, "blocks block_size 2 kv_heads head_dim"],
        batch: PagedBatch,
        rope: RopeTable,
        tap: Recorder,
    ) -> tuple[Float[Array, "tokens hidden"], Float[Array, "blocks block_size 2 kv_heads head_dim"]]:
        """The layer's attention output before the residual, and the updated cache."""
        q, k, v = self._qkv(x, rope)
        q, k, v = tap("attn.q", q), tap("attn.k", k), tap("attn.v", v)
        out, cache = self._attend((q, k, v), cache, batch, tap)
        out = tap("attn.heads", out)
        return tap("attn.out", self.o_proj(out.reshape(out.shape[0], -1))), cache

    def _qkv(self, x: jax.Array, rope: RopeTable) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self._project(x)
        if self.config.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(y.shape[0], -1, self.config.head_dim) for y in (q, k, v))
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope_style is not None:
            q, k = apply_rope(q, rope, self.config.rope_style), apply_rope(k, rope, self.config.rope_style)
        return q, k, v

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if not self.config.fused_qkv:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q_size, kv_size = (heads * self.config.head_dim for heads in (self.config.num_heads, self.config.num_kv_heads))
        q, k, v = jnp.split(self.qkv_proj(x), (q_size, q_size + kv_size), axis=-1)
        return q, k, v

    def _attend(
        self, qkv: tuple[jax.Array, jax.Array, jax.Array], cache: jax.Array, batch: PagedBatch, tap: Recorder
    ) -> tuple[jax.Array, jax.Array]:
        sinks = None if self.sinks is None else self.sinks.get_value()
        if not tap.taps.wants("attn.pattern"):
            return cached_attention(qkv, cache, batch, self.config.spec, sinks, implementation=self.implementation)
        q, k, v = qkv
        cache = write_kv(cache, k, v, batch)
        pattern = tap("attn.pattern", attention_pattern(q, cache, batch, self.config.spec, sinks))
        return attend_with_pattern(pattern, cache, batch).astype(q.dtype), cache
