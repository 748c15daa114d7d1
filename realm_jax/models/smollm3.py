"""SmolLM3: a Llama of which every fourth layer sees no positions."""

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

_UNROTATED_EVERY = 4  # no key of the file tells


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmolLM3Config(ModelConfig):
    """A SmolLM3; layer i is rotated where `rotated[i]`."""

    rotated: tuple[bool, ...]

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `smollm3.*`. llama.cpp's converter orders q and k for interleaved rotation."""
        common = hp.common()
        rotated = tuple((i + 1) % _UNROTATED_EVERY != 0 for i in range(common["num_layers"]))
        return cls(**common, rope=hp.rope("interleaved"), rotated=rotated)

    def layer(self, index: int) -> LayerConfig:
        """One layer, by whether it is rotated."""
        return LayerConfig(attention=self.attention(rope_style=self.rope.style if self.rotated[index] else None))


class SmolLM3(CausalLM):
    """The model of `general.architecture` = smollm3."""

    def __init__(self, weights: Weights, config: SmolLM3Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(i), GatedMLP(layer, config.mlp_sizes, "silu"))
            for i, layer in enumerate(weights.layers(config.num_layers))
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
