"""Qwen 3 (arXiv:2505.09388): each head's queries and keys are normalised; dense, or a mixture of experts."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.moe import ExpertsConfig, MixtureOfExperts
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(ModelConfig):
    """A Qwen 3."""

    qk_norm: bool

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `qwen3.*`."""
        return cls(**hp.common(), rope=hp.rope("half"), qk_norm=True)

    def layer(self) -> LayerConfig:
        """Every layer."""
        return LayerConfig(attention=self.attention(qk_norm="head" if self.qk_norm else None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoEConfig(Qwen3Config):
    """A Qwen 3 whose layers are all mixtures of experts."""

    experts: ExpertsConfig

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `qwen3moe.*`."""
        return cls(**hp.common(), rope=hp.rope("half"), qk_norm=True, experts=hp.experts())


class Qwen3(CausalLM):
    """The model of `general.architecture` = qwen3."""

    def __init__(self, weights: Weights, config: Qwen3Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), GatedMLP(layer, config.mlp_sizes, "silu"))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)


class Qwen3MoE(CausalLM):
    """The model of `general.architecture` = qwen3moe."""

    def __init__(self, weights: Weights, config: Qwen3MoEConfig, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), MixtureOfExperts(layer, config.experts))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
