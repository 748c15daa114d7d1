"""Qwen 2 and 2.5 (arXiv:2407.10671): biases on queries, keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(ModelConfig):
    """A Qwen 2; `attention_bias` as the file's tensors say."""

    attention_bias: bool

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `qwen2.*`."""
        return cls(**hp.common(), rope=hp.rope("half"), attention_bias=hp.biases()["attention_bias"])

    def layer(self) -> LayerConfig:
        """Every layer."""
        return LayerConfig(attention=self.attention(bias=self.attention_bias))


class Qwen2(CausalLM):
    """The model of `general.architecture` = qwen2."""

    def __init__(self, weights: Weights, config: Qwen2Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), GatedMLP(layer, config.mlp_sizes, "silu"))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
