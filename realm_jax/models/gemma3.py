"""Gemma 3 text models (arXiv:2503.19786): sandwich norms, q and k norms, five windowed layers to each full one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import WindowedConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope, RopeConfig
from realm_jax.nn.weights import Weights

_LAYERS_OF_27B = 62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(WindowedConfig):
    """A Gemma 3. `rope` turns the full layers, `local_rope` the windowed ones, whose context needs no scaling."""

    local_rope: RopeConfig
    qk_norm: bool
    attention_scale: float

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `gemma3.*`. The 27B, which its number of layers tells, scales scores by hidden size over heads."""
        common = hp.common()
        rope = hp.rope("half")
        is_27b = common["num_layers"] == _LAYERS_OF_27B
        per_head = common["hidden_size"] // common["num_heads"] if is_27b else common["head_dim"]
        return cls(
            **common,
            **hp.windows(period=6),
            rope=rope,
            local_rope=RopeConfig(dim=rope.dim, base=hp.get("rope.freq_base_swa", 10000.0), style="half"),
            qk_norm=True,
            attention_scale=1 / math.sqrt(per_head),
            embedding_scale=math.sqrt(common["hidden_size"]),
            final_logit_softcap=hp.find_positive("final_logit_softcapping"),
        )

    def layer(self, index: int) -> LayerConfig:
        """One layer: sandwich norms, its rotation and its block table by whether it is windowed."""
        attention = self.attention(
            scale=self.attention_scale,
            window=self.window_of(index),
            qk_norm="head" if self.qk_norm else None,
        )
        return LayerConfig(
            attention=attention,
            post_attn_norm="post_attention_norm",
            post_mlp_norm="post_ffw_norm",
            rope=int(self.windowed[index]),
            group=int(self.windowed[index]),
        )


class Gemma3(CausalLM):
    """The model of `general.architecture` = gemma3."""

    def __init__(self, weights: Weights, config: Gemma3Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(i), GatedMLP(layer, config.mlp_sizes, "gelu_tanh"))
            for i, layer in enumerate(weights.layers(config.num_layers))
        ]
        super().__init__(weights, config, layers, [Rope(config.rope), Rope(config.local_rope)], dtype)
