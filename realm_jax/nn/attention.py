"""Grouped-query attention over the paged cache, with the options that families differ in."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear, apply_together
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.attention import (
    AttentionSpec,
    attend_with_pattern,
    attention_pattern,
    cached_attention,
)
from realm_jax.ops.heads import HeadNorm, HeadTransform
from realm_jax.ops.kv_cache import read_kv
from realm_jax.ops.native_attention import attention_block
from realm_jax.ops.paging import KVCache, PagedBatch
from realm_jax.ops.rope import RopeStyle, RopeTable
from realm_jax.sharding import constrain


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
    qk_norm: HeadNorm | None = None
    sinks: bool = False
    fused_qkv: bool = False

    @property
    def spec(self) -> AttentionSpec:
        """What the attention operation needs to know."""
        scale = 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale
        return AttentionSpec(scale=scale, window=self.window, softcap=self.softcap)


# What may be looked at between the block's input and the stream after it.
_POINTS = ("attn.q", "attn.k", "attn.v", "attn.pattern", "attn.heads", "attn.out")


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
        norm: RMSNorm | None,
        residual: Residual,
        cache: KVCache,
        batch: PagedBatch,
        rope: RopeTable,
        tap: Recorder,
    ) -> tuple[Float[Array, "tokens hidden"], KVCache]:
        """The residual stream after the attention of its norm, and the updated cache."""
        transform: HeadTransform | None = self._transform(rope)
        if not self.config.fused_qkv and not tap.wants(*_POINTS):
            whole = self._in_one(norm, residual, cache, batch, transform)
            if whole is not None:
                return whole
        q, k, v = (self._heads(y) for y in self._project(residual.stream, norm))
        if tap.wants("attn.q", "attn.k", "attn.v", "attn.pattern"):
            q, k = transform(q, k, implementation=self.implementation)
            q, k, v = tap("attn.q", q), tap("attn.k", k), tap("attn.v", v)
            transform = None
        out, cache = self._attend((q, k, v), cache, batch, transform, tap)
        out = tap("attn.heads", out)
        return residual.add_projection(self.o_proj, out.reshape(out.shape[0], -1), tap, "attn.out"), cache

    def _in_one(
        self, norm: RMSNorm | None, residual: Residual, cache: KVCache, batch: PagedBatch, transform: HeadTransform
    ) -> tuple[jax.Array, KVCache] | None:
        """The block in one operation, where the implementation has it."""
        return attention_block(
            residual.stream,
            (self.q_proj.map, self.k_proj.map, self.v_proj.map, self.o_proj.map),
            cache,
            batch,
            self.config.spec,
            norm=None if norm is None else norm.rms,
            transform=transform,
            sinks=None if self.sinks is None else self.sinks.get_value(),
            scale=residual.scale,
            post_norm=residual.post_rms,
            implementation=self.implementation,
        )

    def _project(self, x: jax.Array, norm: RMSNorm | None) -> tuple[jax.Array, ...]:
        if not self.config.fused_qkv:
            return apply_together([self.q_proj, self.k_proj, self.v_proj], x, norm)
        q_size, kv_size = (heads * self.config.head_dim for heads in (self.config.num_heads, self.config.num_kv_heads))
        # The rows of q, k and v are not those that devices have: they are put together before they are taken apart.
        fused = constrain(apply_together([self.qkv_proj], x, norm)[0], "tokens", None)
        return tuple(jnp.split(fused, (q_size, q_size + kv_size), axis=-1))

    def _heads(self, y: jax.Array) -> jax.Array:
        """`[tokens, heads, head_dim]` of all tokens, split by groups of heads that share keys, or not at all.

        A norm over all heads' channels needs all of them.
        """
        split = None if self.config.qk_norm == "full" else "kv_heads"
        grouped = constrain(y.reshape(y.shape[0], self.config.num_kv_heads, -1), None, split, None)
        return grouped.reshape(y.shape[0], -1, self.config.head_dim)

    def _transform(self, rope: RopeTable) -> HeadTransform:
        rotation = {"style": self.config.rope_style, "table": rope}
        if self.config.qk_norm is None:
            return HeadTransform(**rotation)
        return HeadTransform(norm=self.config.qk_norm, norms=(self.q_norm.rms, self.k_norm.rms), **rotation)

    def _attend(
        self,
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        cache: KVCache,
        batch: PagedBatch,
        transform: HeadTransform | None,
        tap: Recorder,
    ) -> tuple[jax.Array, KVCache]:
        sinks = None if self.sinks is None else self.sinks.get_value()
        attend = partial(cached_attention, sinks=sinks, transform=transform, implementation=self.implementation)
        attended, cache = attend(qkv, cache, batch, self.config.spec)
        if not tap.wants("attn.pattern"):
            return attended, cache
        q, head_dim = qkv[0], self.config.head_dim
        keys, values = read_kv(cache, batch, head_dim, implementation=self.implementation)
        pattern = tap("attn.pattern", attention_pattern(q, keys, batch, self.config.spec, sinks))
        return attend_with_pattern(pattern, values, batch).astype(q.dtype), cache
