"""Model families as pure Flax modules, and the registry that builds them from GGUF files."""

from realm_jax.models.batch import ForwardBatch, LayerCache
from realm_jax.models.causal_lm import CausalLM, ModelOutput
from realm_jax.models.config import ModelConfig, UnsupportedModelError
from realm_jax.models.registry import FAMILIES, build, config_of, fallbacks

__all__ = [
    "FAMILIES",
    "CausalLM",
    "ForwardBatch",
    "LayerCache",
    "ModelConfig",
    "ModelOutput",
    "UnsupportedModelError",
    "build",
    "config_of",
    "fallbacks",
]
