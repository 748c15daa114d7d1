"""Gemma 3 text models (arXiv:2503.19786): sandwich norms, q and k norms, five windowed layers to each full one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

from realm_jax.gguf import GGUFFile
from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import Hyperparameters, ModelConfig
from realm_jax.nn.attention import AttentionConfig
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP, gelu_tanh
from realm_jax.nn.rope import Rope, RopeConfig
from realm_jax.nn.weights import Weights


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

    def layer(self, index: int) -> LayerConfig:
        """One layer: sandwich norms, its rotation and its block table by whether it is windowed."""
        windowed = self.is_windowed(index)
        attention = AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            norm_eps=self.norm_eps,
            rope_style=self.rope.style,
            scale=self.attention_scale,
            window=self.window if windowed else None,
            qk_norm="head" if self.qk_norm else None,
        )
        return LayerConfig(
            attention=attention,
            post_attn_norm="post_attention_norm",
            post_mlp_norm="post_ffw_norm",
            rope=int(windowed),
            group=int(windowed),
        )


class Gemma3(CausalLM):
    """The model of `general.architecture` = gemma3."""

    def __init__(self, weights: Weights, config: Gemma3Config, dtype: Any) -> None:
        scopes = [weights.scope(f"blk.{i}") for i in range(config.num_layers)]
        sizes = (config.hidden_size, config.intermediate_size)
        layers = [
            DecoderLayer(scope, config.layer(i), GatedMLP(scope, sizes, gelu_tanh)) for i, scope in enumerate(scopes)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope), Rope(config.local_rope)], dtype)
