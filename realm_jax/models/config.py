"""ModelConfig: the numbers every family has, and the reader that takes them from a GGUF file's metadata."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from realm_jax.gguf import GGUFFile
from realm_jax.nn.rope import RopeConfig, RopeStyle, Yarn


class UnsupportedModelError(ValueError):
    """The file is well-formed, but describes a model that this version cannot run correctly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes and constants that all families share; a family's own are in its subclass.

    `context_length` is the trained context in tokens. `embedding_scale` multiplies the embeddings, `logit_scale` the
    logits; `final_logit_softcap` c maps a logit z to c tanh(z / c).
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
    rope: RopeConfig
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    final_logit_softcap: float | None = None

    @classmethod
    def from_gguf(cls, file: GGUFFile, *, max_model_len: int | None = None) -> Self:
        """Read the configuration; `max_model_len` decides between factors for short and long contexts."""
        raise NotImplementedError


class Hyperparameters:
    """The metadata keys below the architecture's name, typed, and the fields that all families read alike."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.architecture

    def require_int(self, key: str) -> int:
        """An integer that must be there."""
        return self.file.require(f"{self.architecture}.{key}", int)

    def require_float(self, key: str) -> float:
        """A number that must be there."""
        return self.file.require(f"{self.architecture}.{key}", float)

    def find_int(self, key: str) -> int | None:
        """An integer, or None where the file has none."""
        return self.require_int(key) if f"{self.architecture}.{key}" in self.file.metadata else None

    def find_float(self, key: str) -> float | None:
        """A number, or None where the file has none."""
        return self.require_float(key) if f"{self.architecture}.{key}" in self.file.metadata else None

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or `default`, whose type it must have."""
        return self.file.get(f"{self.architecture}.{key}", default)

    def has_tensor(self, name: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return name in self.file.tensors

    def common(self) -> dict[str, Any]:
        """The fields of ModelConfig that do not depend on the family, but for the rope."""
        heads = self.require_int("attention.head_count")
        hidden = self.require_int("embedding_length")
        if heads < 1 or hidden < 1:
            raise UnsupportedModelError(f"head count and embedding length must be positive, got {heads} and {hidden}")
        head_dim = self.get("attention.key_length", hidden // heads)
        if self.get("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModelError("keys and values must have one head size; this model's differ")
        return {
            "architecture": self.architecture,
            "vocab_size": self._vocab_size(),
            "hidden_size": hidden,
            "num_layers": self.require_int("block_count"),
            "num_heads": heads,
            "num_kv_heads": self.get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": self.require_int("feed_forward_length"),
            "context_length": self.require_int("context_length"),
            "norm_eps": self.require_float("attention.layer_norm_rms_epsilon"),
            "tied_embeddings": not self.has_tensor("output.weight"),
        }

    def _vocab_size(self) -> int:
        table = self.file.tensors.get("token_embd.weight")
        if table is None:
            raise UnsupportedModelError("the file has no tensor token_embd.weight; is it a vocabulary or an adapter?")
        return table.shape[0]

    def rope(self, style: RopeStyle, *, factors: tuple[float, ...] | None = None) -> RopeConfig:
        """The rotation by `rope.*`: base, linear or YaRN scaling, and `factors` where the family has them."""
        heads, hidden = self.require_int("attention.head_count"), self.require_int("embedding_length")
        head_dim = self.get("attention.key_length", hidden // heads)
        kind = self.get("rope.scaling.type", "none")
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise UnsupportedModelError(f"rope.scaling.type must be none, linear, yarn or longrope, got {kind!r}")
        factor = self.get("rope.scaling.factor", 1.0)
        return RopeConfig(
            dim=self.get("rope.dimension_count", head_dim),
            base=self.get("rope.freq_base", 10000.0),
            style=style,
            linear_factor=factor if kind == "linear" else 1.0,
            factors=factors,
            yarn=self._yarn(factor) if kind == "yarn" else None,
        )

    def _yarn(self, factor: float) -> Yarn:
        return Yarn(
            factor=factor,
            original_context=self.get("rope.scaling.original_context_length", self.require_int("context_length")),
            beta_fast=self.get("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.get("rope.scaling.yarn_beta_slow", 1.0),
            extrapolation=self.get("rope.scaling.yarn_ext_factor", 1.0),
        )

    def rope_factors(self, name: str) -> tuple[float, ...] | None:
        """The per-frequency divisors that the file stores as tensor `name`, or None."""
        raw = self.file.tensors.get(name)
        if raw is None:
            return None
        return tuple(float(x) for x in raw.data.view("<f4"))
