"""Gemma 2 (arXiv:2408.00118): sandwich norms, soft-caps on scores and logits, every other layer windowed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import WindowedConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights

_LAYERS_OF_27B = 46


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(WindowedConfig):
    """A Gemma 2. `attention_softcap` c maps a score s to c tanh(s / c)."""

    attention_scale: float
    attention_softcap: float | None

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `gemma2.*`. The 27B, which its number of layers tells, scales scores by hidden size over heads."""
        common = hp.common()
        is_27b = common["num_layers"] == _LAYERS_OF_27B
        per_head = common["hidden_size"] // common["num_heads"] if is_27b else common["head_dim"]
        return cls(
            **common,
            **hp.windows(period=2, window=4096),
            rope=hp.rope("half"),
            attention_scale=1 / math.sqrt(per_head),
            attention_softcap=hp.get("attn_logit_softcapping", 50.0) or None,
            embedding_scale=math.sqrt(common["hidden_size"]),
            final_logit_softcap=hp.get("final_logit_softcapping", 30.0) or None,
        )

    def layer(self, index: int) -> LayerConfig:
        """One layer: sandwich norms, its block table by whether it is windowed."""
        attention = self.attention(
            scale=self.attention_scale, softcap=self.attention_softcap, window=self.window_of(index)
        )
        return LayerConfig(
            attention=attention,
            post_attn_norm="post_attention_norm",
            post_mlp_norm="post_ffw_norm",
            group=int(self.windowed[index]),
        )


class Gemma2(CausalLM):
    """The model of `general.architecture` = gemma2."""

    def __init__(self, weights: Weights, config: Gemma2Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(i), GatedMLP(layer, config.mlp_sizes, "gelu_tanh"))
            for i, layer in enumerate(weights.layers(config.num_layers))
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
