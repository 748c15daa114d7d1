"""Llama and what shares its block: Llama 1 to 3, Mistral, Mixtral, SmolLM, TinyLlama (arXiv:2302.13971, 2407.21783)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from flax import nnx

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.moe import ExpertsConfig, MixtureOfExperts
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A Llama. Biases as the file's tensors say; `experts` None: one feed-forward block in each layer."""

    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    experts: ExpertsConfig | None

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `llama.*`. llama.cpp's converter orders q and k for interleaved rotation."""
        return cls(
            **hp.common(),
            **hp.biases(),
            rope=hp.rope("interleaved"),
            experts=hp.experts() if hp.get("expert_count", 0) else None,
        )

    def layer(self) -> LayerConfig:
        """Every layer."""
        return LayerConfig(attention=self.attention(bias=self.attention_bias, output_bias=self.output_bias))

    def feed_forward(self, weights: Weights) -> nnx.Module:
        """The block behind a layer's attention."""
        if self.experts is not None:
            return MixtureOfExperts(weights, self.experts)
        return GatedMLP(weights, self.mlp_sizes, "silu", bias=self.mlp_bias)


class Llama(CausalLM):
    """The model of `general.architecture` = llama."""

    def __init__(self, weights: Weights, config: LlamaConfig, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), config.feed_forward(layer))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
