"""Phi 3, 3.5 and 4 (arXiv:2404.14219): fused projections, and LongRoPE for long contexts (arXiv:2402.13753)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import FusedGatedMLP
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3Config(ModelConfig):
    """A Phi 3. Every layer sees `window` positions; None: all."""

    window: int | None

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `phi3.*`. The context decides between factors for long and short sequences."""
        return cls(**hp.common(), rope=hp.rope("half"), window=hp.window() or None)

    def layer(self) -> LayerConfig:
        """Every layer."""
        return LayerConfig(attention=self.attention(window=self.window))


class Phi3(CausalLM):
    """The model of `general.architecture` = phi3."""

    def __init__(self, weights: Weights, config: Phi3Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(), FusedGatedMLP(layer, config.mlp_sizes, "silu"))
            for layer in weights.layers(config.num_layers)
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
