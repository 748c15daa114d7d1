"""ModelConfig: the numbers that fix a model, whatever its family."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.gguf import GGUFFile
from realm_jax.models.hyperparameters import Hyperparameters, UnsupportedModelError
from realm_jax.nn.attention import AttentionConfig
from realm_jax.nn.rope import RopeConfig

__all__ = ["ModelConfig", "UnsupportedModelError", "WindowedConfig"]

_COUNTS = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "context_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes and constants that all families share; a family's own are in its subclass.

    `context_length` is the trained context in tokens. `tied_embeddings`: the head is the table of embeddings;
    `fused_qkv`: the file holds the projections to q, k and v as one tensor. `embedding_scale` multiplies the
    embeddings, `logit_scale` the logits; `final_logit_softcap` c maps a logit z to c tanh(z / c).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    norm_eps: float
    tied_embeddings: bool
    fused_qkv: bool
    rope: RopeConfig
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    final_logit_softcap: float | None = None

    def __post_init__(self) -> None:
        for field in _COUNTS:
            if getattr(self, field) < 1:
                raise UnsupportedModelError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_heads must be a multiple of {self.num_kv_heads} kv heads, got {self.num_heads}"
            )
        if self.rope.dim % 2 or not 0 < self.rope.dim <= self.head_dim:
            raise UnsupportedModelError(
                f"the rotated channels of a head must be an even number up to {self.head_dim}, got {self.rope.dim}"
            )

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, max_model_len: int | None = None) -> Self:
        """Read the configuration; `max_model_len` decides between factors for short and long contexts.

        Raises UnsupportedModelError where the metadata asks for a computation that the family does not have.
        """
        hp = Hyperparameters(file, max_model_len=max_model_len)
        config = cls.read(hp)
        hp.refuse_unread()
        return config

    @classmethod
    def read(cls, hp: Hyperparameters) -> Self:
        """The family's configuration from its hyperparameters."""
        raise NotImplementedError

    @property
    def mlp_sizes(self) -> tuple[int, int]:
        """(hidden, intermediate): the widths of a feed-forward block."""
        return self.hidden_size, self.intermediate_size

    def attention(self, **options: Any) -> AttentionConfig:
        """The attention of a layer: what all families share, and `options` of AttentionConfig besides."""
        shared = {
            "hidden_size": self.hidden_size,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "norm_eps": self.norm_eps,
            "rope_style": self.rope.style,
            "fused_qkv": self.fused_qkv,
        }
        return AttentionConfig(**{**shared, **options})


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowedConfig(ModelConfig):
    """A family whose layer i sees `window` positions where `windowed[i]`, and all of them elsewhere."""

    window: int | None
    windowed: tuple[bool, ...]

    def window_of(self, layer: int) -> int | None:
        """How many positions a layer sees; None: all."""
        return self.window if self.windowed[layer] else None
