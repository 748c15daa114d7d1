"""Hyperparameters: the reader that turns a GGUF file's metadata into the numbers of a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from realm_jax.gguf import GGMLType, GGUFFile
from realm_jax.nn.moe import ExpertsConfig
from realm_jax.nn.rope import RopeConfig, RopeStyle, Yarn

# Keys that change what a model computes, each with the values that leave it as it is. A family that does not read
# such a key would give wrong results for a file that sets it to anything else.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention.causal": (True,),
        "attention.clamp_kqv": (0.0,),
        "attention.key_length_swa": (),
        "attention.max_alibi_bias": (0.0,),
        "attention.output_scale": (0.0, 1.0),
        "attention.scale": (0.0,),
        "attention.shared_kv_layers": (0,),
        "attention.sliding_window": (0,),
        "attention.temperature_scale": (0.0,),
        "attn_logit_softcapping": (0.0,),
        "embedding_scale": (0.0, 1.0),
        "expert_count": (0,),
        "expert_gating_func": (0, 1),  # 1: softmax
        "expert_group_count": (0, 1),
        "expert_shared_count": (0,),
        "expert_weights_norm": (),
        "expert_weights_scale": (0.0, 1.0),
        "final_logit_softcapping": (0.0,),
        "full_attention_interval": (0,),
        "leading_dense_block_count": (0,),
        "logit_scale": (0.0, 1.0),
        "nextn_predict_layers": (0,),
        "residual_scale": (0.0, 1.0),
        "rope.dimension_count_swa": (),
        "rope.dimension_sections": (),
        "rope.freq_base_swa": (),
        "rope.scaling.alpha": (0.0, 1.0),
        "rope.scaling.yarn_log_multiplier": (0.0,),
        "router_logit_softcapping": (0.0,),
        "swiglu_clamp_exp": (0.0,),
        "use_parallel_residual": (False,),
    }
)


class UnsupportedModelError(ValueError):
    """The file is well-formed, but describes a model that this version cannot run correctly."""


class Hyperparameters:
    """The metadata keys below the architecture's name, typed, and the fields that all families read alike."""

    def __init__(self, file: GGUFFile, *, max_model_len: int | None = None) -> None:
        """`max_model_len`: the context in tokens that will be used; None for the trained one."""
        self.file = file
        self.architecture = file.architecture
        self.max_model_len = max_model_len
        self._read: set[str] = set()

    def require_int(self, key: str) -> int:
        """An integer that must be there."""
        return self.file.require(self._key(key), int)

    def require_float(self, key: str) -> float:
        """A number that must be there."""
        return self.file.require(self._key(key), float)

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or `default`, whose type it must have."""
        return self.file.get(self._key(key), default)

    def find_positive(self, key: str) -> float | None:
        """A number, or None where the file has none or says 0 for none."""
        return self.get(key, 0.0) or None

    def _key(self, key: str) -> str:
        self._read.add(key)
        return f"{self.architecture}.{key}"

    def refuse_unread(self) -> None:
        """Raise UnsupportedModelError for a key that changes the results and that nobody has read."""
        for key in sorted(_NEUTRAL.keys() - self._read):
            value = self.file.metadata.get(f"{self.architecture}.{key}")
            if value is not None and not any(np.all(value == neutral) for neutral in _NEUTRAL[key]):
                raise UnsupportedModelError(
                    f"{self.architecture}.{key} must be absent or neutral, got {value}: "
                    "this variant of the architecture is not supported"
                )

    def has_tensor(self, name: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return name in self.file.tensors

    def common(self) -> dict[str, Any]:
        """The fields of ModelConfig that do not depend on the family, but for the rope."""
        return {
            "architecture": self.architecture,
            "vocab_size": self._vocab_size(),
            "hidden_size": self.require_int("embedding_length"),
            "num_layers": self.require_int("block_count"),
            "num_heads": self.require_int("attention.head_count"),
            "num_kv_heads": self.get("attention.head_count_kv", self.require_int("attention.head_count")),
            "head_dim": self._head_dim(),
            "intermediate_size": self.require_int("feed_forward_length"),
            "context_length": self.require_int("context_length"),
            "norm_eps": self.require_float("attention.layer_norm_rms_epsilon"),
            "tied_embeddings": not self.has_tensor("output.weight"),
            "fused_qkv": self.has_tensor("blk.0.attn_qkv.weight"),
        }

    def _vocab_size(self) -> int:
        table = self.file.tensors.get("token_embd.weight")
        if table is None:
            raise UnsupportedModelError("the file has no tensor token_embd.weight; is it a vocabulary or an adapter?")
        return table.shape[0]

    def _head_dim(self) -> int:
        heads, hidden = self.require_int("attention.head_count"), self.require_int("embedding_length")
        if heads < 1 or hidden < 1:
            raise UnsupportedModelError(f"head count and embedding length must be positive, got {heads} and {hidden}")
        head_dim = self.get("attention.key_length", hidden // heads)
        if self.get("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModelError("keys and values must have one head size; this model's differ")
        return head_dim

    def biases(self) -> dict[str, Any]:
        """The fields `attention_bias`, `output_bias` and `mlp_bias`, which tensors of the first layer tell."""
        queries = "attn_qkv" if self.has_tensor("blk.0.attn_qkv.weight") else "attn_q"
        tensors = {"attention_bias": queries, "output_bias": "attn_output", "mlp_bias": "ffn_gate"}
        return {field: self.has_tensor(f"blk.0.{tensor}.bias") for field, tensor in tensors.items()}

    def window(self, default: int = 0) -> int:
        """How many positions a windowed layer sees; 0 for all."""
        window = self.get("attention.sliding_window", default)
        if window < 0:
            raise UnsupportedModelError(f"attention.sliding_window must not be negative, got {window}")
        return window

    def windows(self, period: int, *, window: int = 0) -> dict[str, Any]:
        """The fields of WindowedConfig: `attention.sliding_window`, `window` where the file does not say, 0 for none.

        Which layers have it, `attention.sliding_window_pattern` tells by a flag for each, or by a period whose last
        layer sees everything; `period` where the file does not say.
        """
        window = self.window(window)
        layers = self.require_int("block_count")
        pattern = self.get("attention.sliding_window_pattern", None)
        if isinstance(pattern, np.ndarray):
            if pattern.shape != (layers,):
                raise UnsupportedModelError(
                    f"attention.sliding_window_pattern must have one flag for each of {layers} layers, "
                    f"got {len(pattern)}"
                )
            windowed = tuple(bool(flag) for flag in pattern)
        else:
            period = self.get("attention.sliding_window_pattern", period)
            windowed = tuple(period == 0 or i % period < period - 1 for i in range(layers))
        return {"window": window or None, "windowed": windowed if window else (False,) * layers}

    def experts(self, **options: Any) -> ExpertsConfig:
        """The mixture of experts by `expert_*`, and `options` of ExpertsConfig besides."""
        return ExpertsConfig(
            hidden_size=self.require_int("embedding_length"),
            intermediate_size=self.get("expert_feed_forward_length", self.require_int("feed_forward_length")),
            num_experts=self.require_int("expert_count"),
            experts_per_token=self.require_int("expert_used_count"),
            normalise=self.get("expert_weights_norm", True),
            weights_scale=self.find_positive("expert_weights_scale") or 1.0,
            **options,
        )

    def rope(self, style: RopeStyle) -> RopeConfig:
        """The rotation by `rope.*` and the tensors that hold factors: linear, Llama 3, LongRoPE or YaRN scaling."""
        kind = self.get("rope.scaling.type", "linear")
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise UnsupportedModelError(f"rope.scaling.type must be none, linear, yarn or longrope, got {kind!r}")
        dim = self.get("rope.dimension_count", self._head_dim())
        factor = self.find_positive("rope.scaling.factor") or self.find_positive("rope.scale_linear") or 1.0
        attention_factor = self.get("rope.scaling.attn_factor", 1.0)
        if kind == "yarn":
            attention_factor *= self.get("rope.scaling.yarn_attn_factor", 1 + 0.1 * math.log(max(factor, 1.0)))
        return RopeConfig(
            dim=dim,
            base=self.get("rope.freq_base", 10000.0),
            style=style,
            linear_factor=factor if kind in ("linear", "longrope") else 1.0,
            factors=self._rope_factors(dim),
            yarn=self._yarn(factor) if kind == "yarn" else None,
            attention_factor=attention_factor,
        )

    def _yarn(self, factor: float) -> Yarn:
        return Yarn(
            factor=factor,
            original_context=self._original_context(),
            beta_fast=self.get("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.get("rope.scaling.yarn_beta_slow", 1.0),
            extrapolation=self.get("rope.scaling.yarn_ext_factor", 1.0),
        )

    def _original_context(self) -> int:
        return self.get("rope.scaling.original_context_length", self.require_int("context_length"))

    def _rope_factors(self, dim: int) -> tuple[float, ...] | None:
        """Divisors of the frequencies: the file's own, or those for the context that will be used.

        Keys rotated by one set do not go with queries rotated by another, so the choice is made once and for all.
        """
        context = self.require_int("context_length") if self.max_model_len is None else self.max_model_len
        length = "long" if context > self._original_context() else "short"
        for name in ("rope_freqs.weight", f"rope_factors_{length}.weight"):
            raw = self.file.tensors.get(name)
            if raw is None:
                continue
            if raw.ggml_type != GGMLType.F32 or raw.shape != (dim // 2,):
                raise UnsupportedModelError(
                    f"tensor {name} must be {dim // 2} float32 numbers, got shape {raw.shape} of {raw.ggml_type.name}"
                )
            if raw.view is None:  # a header alone fixes shapes, not numbers: none is right, and nobody is to use one
                return (math.nan,) * (dim // 2)
            return tuple(float(x) for x in raw.data.view("<f4"))
        return None
