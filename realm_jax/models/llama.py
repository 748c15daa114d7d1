"""Llama and what shares its block: Llama 1 to 3, Mistral, SmolLM, TinyLlama (arXiv:2302.13971, 2407.21783)."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax

from realm_jax.gguf import GGUFFile
from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import Hyperparameters, ModelConfig
from realm_jax.nn.attention import AttentionConfig
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.mlp import GatedMLP
from realm_jax.nn.rope import Rope
from realm_jax.nn.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A Llama. `attention_bias`, `output_bias` and `mlp_bias` as the file's tensors say."""

    attention_bias: bool
    output_bias: bool
    mlp_bias: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, max_model_len: int | None = None) -> Self:
        """Read `llama.*`; Llama 3's frequency divisors are the tensor rope_freqs.weight."""
        hp = Hyperparameters(file)
        return cls(
            **hp.common(),
            rope=hp.rope("interleaved", factors=hp.rope_factors("rope_freqs.weight")),
            attention_bias=hp.has_tensor("blk.0.attn_q.bias"),
            output_bias=hp.has_tensor("blk.0.attn_output.bias"),
            mlp_bias=hp.has_tensor("blk.0.ffn_gate.bias"),
        )

    @property
    def attention(self) -> AttentionConfig:
        """The attention of every layer. llama.cpp's converter orders q and k for interleaved rotation."""
        return AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            norm_eps=self.norm_eps,
            rope_style=self.rope.style,
            bias=self.attention_bias,
            output_bias=self.output_bias,
        )


class Llama(CausalLM):
    """The model of `general.architecture` = llama."""

    def __init__(self, weights: Weights, config: LlamaConfig, dtype: Any) -> None:
        scopes = [weights.scope(f"blk.{i}") for i in range(config.num_layers)]
        sizes = (config.hidden_size, config.intermediate_size)
        layers = [
            DecoderLayer(
                scope,
                LayerConfig(attention=config.attention),
                GatedMLP(scope, sizes, jax.nn.silu, bias=config.mlp_bias),
            )
            for scope in scopes
        ]
        super().__init__(weights, config, layers, [Rope(config.rope)], dtype)
