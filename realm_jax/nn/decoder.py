"""The decoder layer: attention and feed-forward around one residual stream, with norms where the family has them."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.attention import Attention, AttentionConfig
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.paging import KVCache, PagedBatch
from realm_jax.ops.rope import RopeTable


class FeedForward(Protocol):
    """What stands behind the attention: a gated MLP or a mixture of experts."""

    def __call__(self, norm: RMSNorm | None, residual: Residual, tap: Recorder) -> jax.Array:
        """The residual stream `[tokens, hidden]` after the block, whose input is the norm of the stream before."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """How a layer is put together.

    The four names are tensors of the file, None where the family has no norm there: before and after attention,
    before and after the feed-forward block. `residual_scale` multiplies both branches (Granite). `rope` is the index
    of the layer's rotation among the model's, `group` that of its block table.
    """

    attention: AttentionConfig
    attn_norm: str | None = "attn_norm"
    post_attn_norm: str | None = None
    mlp_norm: str | None = "ffn_norm"
    post_mlp_norm: str | None = None
    residual_scale: float = 1.0
    rope: int = 0
    group: int = 0


class DecoderLayer(nnx.Module):
    """`x + s post(attn(pre(x)))`, then `x + s post(mlp(pre(x)))`."""

    def __init__(self, weights: Weights, config: LayerConfig, mlp: nnx.Module) -> None:
        self.config = config
        size, eps = config.attention.hidden_size, config.attention.norm_eps

        def norm(name: str | None) -> RMSNorm | None:
            return None if name is None else RMSNorm(weights, name, size, eps)

        self.attn_norm, self.post_attn_norm = norm(config.attn_norm), norm(config.post_attn_norm)
        self.attn = Attention(weights, config.attention)
        self.mlp_norm, self.post_mlp_norm = norm(config.mlp_norm), norm(config.post_mlp_norm)
        self.mlp = mlp

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        cache: KVCache,
        batch: PagedBatch,
        rope: RopeTable,
        tap: Recorder,
    ) -> tuple[Float[Array, "tokens hidden"], KVCache]:
        """The residual stream after the layer, and the updated cache, a `kv_cache_array`."""
        x = tap("resid_pre", x)
        residual = Residual(stream=x, post_norm=self.post_attn_norm, scale=self.config.residual_scale)
        x, cache = self.attn(self.attn_norm, residual, cache, batch, rope, tap)
        x = tap("resid_mid", x)
        residual = Residual(stream=x, post_norm=self.post_mlp_norm, scale=self.config.residual_scale)
        return tap("resid_post", self.mlp(self.mlp_norm, residual, tap)), cache
