"""Flax modules that the model families are made of."""

from realm_jax.nn.attention import Attention, AttentionConfig
from realm_jax.nn.decoder import DecoderLayer, LayerConfig
from realm_jax.nn.linear import Embedding, Linear
from realm_jax.nn.mlp import FusedGatedMLP, GatedMLP
from realm_jax.nn.moe import ExpertsConfig, MixtureOfExperts
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.rope import Rope, RopeConfig, Yarn
from realm_jax.nn.taps import NO_TAPS, Recorder, Taps
from realm_jax.nn.weights import Weight, WeightError, Weights

__all__ = [
    "NO_TAPS",
    "Attention",
    "AttentionConfig",
    "DecoderLayer",
    "Embedding",
    "ExpertsConfig",
    "FusedGatedMLP",
    "GatedMLP",
    "LayerConfig",
    "Linear",
    "MixtureOfExperts",
    "RMSNorm",
    "Recorder",
    "Residual",
    "Rope",
    "RopeConfig",
    "Taps",
    "Weight",
    "WeightError",
    "Weights",
    "Yarn",
]
