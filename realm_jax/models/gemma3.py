"""Gemma 3 text models (arXiv:2503.19786): sandwich norms, q and k norms, five windowed layers to each full one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
from flax import nnx

from realm_jax.gguf import GGUFFile
from realm_jax.models.batch import LayerCache
from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import Hyperparameters, ModelConfig
from realm_jax.nn.attention import Attention, AttentionConfig
from realm_jax.nn.mlp import GatedMLP, gelu_tanh
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.rope import Rope, RopeConfig, RopeTable
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.paging import PagedBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(ModelConfig):
    """A Gemma 3. `rope` turns the full layers, `local_rope` the windowed ones."""

    window: int
    full_every: int
    local_rope: RopeConfig
    qk_norm: bool
    attention_scale: float

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, max_model_len: int | None = None) -> Self:
        """Read `gemma3.*`. The embeddings are scaled by sqrt(hidden); the 27B scales scores by hidden / heads."""
        hp = Hyperparameters(file)
        common = hp.common()
        rope = hp.rope("half")
        local = RopeConfig(dim=rope.dim, base=hp.get("rope.freq_base_swa", 10000.0), style="half")
        is_27b = common["num_layers"] == 62
        per_head = common["hidden_size"] / common["num_heads"] if is_27b else common["head_dim"]
        return cls(
            **common,
            rope=rope,
            local_rope=local,
            window=hp.require_int("attention.sliding_window"),
            full_every=6,
            qk_norm=True,
            attention_scale=1 / math.sqrt(per_head),
            embedding_scale=math.sqrt(common["hidden_size"]),
            final_logit_softcap=hp.find_float("final_logit_softcapping"),
        )

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer sees only `window` positions."""
        return (layer + 1) % self.full_every != 0

    def attention(self, layer: int) -> AttentionConfig:
        """The attention of one layer."""
        return AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            norm_eps=self.norm_eps,
            rope_style=self.rope.style,
            scale=self.attention_scale,
            window=self.window if self.is_windowed(layer) else None,
            qk_norm="head" if self.qk_norm else None,
        )


class Gemma3Layer(nnx.Module):
    """`x + norm(attn(norm(x)))`, then `x + norm(mlp(norm(x)))`."""

    def __init__(self, weights: Weights, config: Gemma3Config, layer: int) -> None:
        windowed = config.is_windowed(layer)
        self.rope = int(windowed)
        self.cache = LayerCache(
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.window if windowed else None,
            group=int(windowed),
        )
        size, eps = config.hidden_size, config.norm_eps
        self.attn_norm = RMSNorm(weights, "attn_norm", size, eps)
        self.attn = Attention(weights, config.attention(layer))
        self.post_attn_norm = RMSNorm(weights, "post_attention_norm", size, eps)
        self.mlp_norm = RMSNorm(weights, "ffn_norm", size, eps)
        self.mlp = GatedMLP(weights, (size, config.intermediate_size), gelu_tanh)
        self.post_mlp_norm = RMSNorm(weights, "post_ffw_norm", size, eps)

    def __call__(
        self, x: jax.Array, cache: jax.Array, batch: PagedBatch, rope: RopeTable, tap: Recorder
    ) -> tuple[jax.Array, jax.Array]:
        """One layer; see `models.causal_lm.Layer`."""
        attended, cache = self.attn(self.attn_norm(x), cache, batch, rope, tap)
        x = tap("resid_mid", x + self.post_attn_norm(attended))
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x), tap)), cache


class Gemma3(CausalLM):
    """The model of `general.architecture` = gemma3."""

    def __init__(self, weights: Weights, config: Gemma3Config, dtype: Any) -> None:
        layers = [Gemma3Layer(weights.scope(f"blk.{i}"), config, i) for i in range(config.num_layers)]
        super().__init__(weights, config, layers, [Rope(config.rope), Rope(config.local_rope)], dtype)
