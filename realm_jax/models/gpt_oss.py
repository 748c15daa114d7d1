"""gpt-oss (arXiv:2508.10925): attention sinks, every other layer windowed, clamped experts with biases."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import WindowedConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.moe import ExpertsConfig, MixtureOfExperts
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights
from realm_jax.ops.experts import ClampedSwiGLU

_ACTIVATION = ClampedSwiGLU(alpha=1.702, limit=7.0)  # no key of the file tells


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptOssConfig(WindowedConfig):
    """A gpt-oss."""

    experts: ExpertsConfig

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `gpt-oss.*`."""
        return cls(
            **hp.common(),
            **hp.windows(period=2),
            rope=hp.rope("half"),
            experts=hp.experts(bias=True, activation=_ACTIVATION),
        )

    def layer(self, index: int) -> LayerConfig:
        """One layer, its block table by whether it is windowed. post_attention_norm stands before the experts."""
        return LayerConfig(
            attention=self.attention(bias=True, output_bias=True, sinks=True, window=self.window_of(index)),
            mlp_norm="post_attention_norm",
            group=int(self.windowed[index]),
        )


class GptOss(CausalLM):
    """The model of `general.architecture` = gpt-oss."""

    def __init__(self, weights: Weights, config: GptOssConfig, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(i), MixtureOfExperts(layer, config.experts))
            for i, layer in enumerate(weights.layers(config.num_layers))
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
