"""OLMo 2 and 3 (arXiv:2501.00656, 2512.13961): norms behind each block, none before; OLMo 3 adds windowed layers."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import WindowedConfig
from realm_jax.models.hyperparameters import Hyperparameters
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope, RopeConfig
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo2Config(WindowedConfig):
    """An OLMo 2 or 3. `rope` turns the full layers, `local_rope` the windowed ones, whose context needs no scaling."""

    local_rope: RopeConfig
    qk_norm: bool

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """Read `olmo2.*`."""
        rope = hp.rope("half")
        local = RopeConfig(dim=rope.dim, base=hp.get("rope.freq_base_swa", rope.base), style="half")
        return cls(**hp.common(), **hp.windows(period=4), rope=rope, local_rope=local, qk_norm=True)

    def layer(self, index: int) -> LayerConfig:
        """One layer, its rotation and its block table by whether it is windowed."""
        return LayerConfig(
            attention=self.attention(window=self.window_of(index), qk_norm="full" if self.qk_norm else None),
            attn_norm=None,
            post_attn_norm="post_attention_norm",
            mlp_norm=None,
            post_mlp_norm="post_ffw_norm",
            rope=int(self.windowed[index]),
            group=int(self.windowed[index]),
        )


class Olmo2(CausalLM):
    """The model of `general.architecture` = olmo2."""

    def __init__(self, weights: Weights, config: Olmo2Config, dtype: Any) -> None:
        layers = [
            DecoderLayer(layer, config.layer(i), GatedMLP(layer, config.mlp_sizes, "silu"))
            for i, layer in enumerate(weights.layers(config.num_layers))
        ]
        super().__init__(weights, config, layers, [Rope(config.rope), Rope(config.local_rope)], dtype)
