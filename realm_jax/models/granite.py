"""Granite 3 (IBM, 2024): a Llama with multipliers on embeddings, scores, residual branches and logits."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig
from realm_jax.models.hyperparameters import Hyperparameters, UnsupportedModelError
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteConfig(ModelConfig):
    """A Granite. `attention_scale` None: `head_dim ** -0.5`; biases as the file's tensors say."""

    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    attention_scale: float | None
    residual_scale: float

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `granite.*`, whose `logit_scale` divides."""
        if not hp.get("rope.scaling.finetuned", True):
            raise UnsupportedModelError("granite.rope.scaling.finetuned must be true: there is no Granite without rope")
        return cls(
            **hp.common(),
            **hp.biases(),
            rope=hp.rope("interleaved"),
            attention_scale=hp.find_positive("attention.scale"),
            residual_scale=hp.find_positive("residual_scale") or 1.0,
            embedding_scale=hp.find_positive("embedding_scale") or 1.0,
            logit_scale=1 / hp.require_float("logit_scale"),
        )

    def layer(self) -> LayerConfig:
        """Every layer."""
        attention = self.attention(bias=self.attention_bias, output_bias=self.output_bias, scale=self.attention_scale)
        return LayerConfig(attention=attention, residual_scale=self.residual_scale)


class Granite(CausalLM):
    """The model of `general.architecture` = granite."""

    def __init__(self, weights: Weights, config: GraniteConfig, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), GatedMLP(layer, config.mlp_sizes, "silu", bias=config.mlp_bias))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
