"""Which architectures can be run, and how a GGUF file becomes a model."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from realm_jax import quant
from realm_jax.gguf import GGUFFile, RawTensor
from realm_jax.models.causal_lm import CausalLM
from realm_jax.models.config import ModelConfig, UnsupportedModelError
from realm_jax.models.gemma2 import Gemma2, Gemma2Config
from realm_jax.models.gemma3 import Gemma3, Gemma3Config
from realm_jax.models.gpt_oss import GptOss, GptOssConfig
from realm_jax.models.granite import Granite, GraniteConfig
from realm_jax.models.llama import Llama, LlamaConfig
from realm_jax.models.olmo2 import Olmo2, Olmo2Config
from realm_jax.models.phi3 import Phi3, Phi3Config
from realm_jax.models.qwen2 import Qwen2, Qwen2Config
from realm_jax.models.qwen3 import Qwen3, Qwen3Config, Qwen3MoE, Qwen3MoEConfig
from realm_jax.models.smollm3 import SmolLM3, SmolLM3Config
from realm_jax.nn.weights import Weights
from realm_jax.ops.backends import choose_implementation, layout_name, require_device, require_split
from realm_jax.quant import QTensor
from realm_jax.sharding import check_experts, named_sharding, weight_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture: how to read its configuration and how to build it."""

    config: type[ModelConfig]
    model: Callable[[Weights, Any, Any], CausalLM]


# An architecture is listed once its logits were compared with its reference implementation (tests/models).
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gemma2": Family(config=Gemma2Config, model=Gemma2),
        "gemma3": Family(config=Gemma3Config, model=Gemma3),
        "gpt-oss": Family(config=GptOssConfig, model=GptOss),
        "granite": Family(config=GraniteConfig, model=Granite),
        "llama": Family(config=LlamaConfig, model=Llama),
        "olmo2": Family(config=Olmo2Config, model=Olmo2),
        "phi3": Family(config=Phi3Config, model=Phi3),
        "qwen2": Family(config=Qwen2Config, model=Qwen2),
        "qwen3": Family(config=Qwen3Config, model=Qwen3),
        "qwen3moe": Family(config=Qwen3MoEConfig, model=Qwen3MoE),
        "smollm3": Family(config=SmolLM3Config, model=SmolLM3),
    }
)

# Tensors that configurations read themselves.
_READ_BY_CONFIG = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


def family_of(file: GGUFFile) -> Family:
    """The family of a file's architecture, or an error that lists what is supported."""
    family = FAMILIES.get(file.architecture)
    if family is None:
        raise UnsupportedModelError(
            f"architecture {file.architecture!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
        )
    return family


def config_of(file: GGUFFile, *, max_model_len: int | None = None) -> ModelConfig:
    """The configuration that a file's metadata describes."""
    return family_of(file).config.from_gguf(file, max_model_len=max_model_len)


def build(
    file: GGUFFile,
    *,
    config: ModelConfig | None = None,
    dtype: Any = jnp.float32,
    implementation: str | None = None,
    device: Any = None,
    abstract: bool = False,
    mapped: bool = False,
) -> CausalLM:
    """The model of a file, its weights as stored, or repacked for the implementation's kernels.

    `device` is a device, a sharding for all tensors, or a mesh over whose devices the rules of `realm_jax.sharding`
    split them; `abstract` gives shapes only, with their splits on a mesh, and reads nothing, for any implementation;
    `mapped` leaves matrices in the file, as `quant.MappedTensor`. Where Pallas kernels lack the type of a weight that
    is loaded a warning says so: `fallbacks` lists these weights.

    Raises UnsupportedModelError for an unknown architecture or for tensors that the architecture does not use:
    they mean a variant whose results would be wrong.
    """
    config = config_of(file) if config is None else config
    chosen = choose_implementation(implementation)
    if isinstance(device, Mesh):
        check_experts(file.tensors, device.shape)
        require_split(chosen)
    if not abstract:
        require_device(chosen)
    if chosen not in ("cpu", "null") and not abstract:
        _warn_of_fallbacks(file, chosen)
    layout = layout_name(chosen)

    arena = quant.Arena()

    def load(name: str) -> QTensor | None:
        raw = file.tensors.get(name)
        if raw is None:
            return None
        if abstract:
            on_mesh = isinstance(device, Mesh)
            return quant.abstract(raw, layout, _placed(device, name, raw, layout) if on_mesh else None)
        if mapped:
            return quant.mapped(raw, layout)
        return quant.from_raw(raw, _placed(device, name, raw, layout), layout=layout, arena=arena)

    weights = Weights(
        load=load,
        taken=set(),
        implementation=chosen,
        total_elements=sum(math.prod(raw.shape) for raw in file.tensors.values()),
    )
    model = family_of(file).model(weights, config, dtype)
    unused = sorted(file.tensors.keys() - weights.taken - _READ_BY_CONFIG)
    if unused:
        raise UnsupportedModelError(
            f"this {file.architecture} file has {len(unused)} tensors that its architecture does not use, "
            f"such as {unused[0]}; it is a variant that is not supported"
        )
    return model


def fallbacks(file: GGUFFile, implementation: str | None) -> dict[str, str]:
    """The quantised matrices that an implementation has no kernels for, with the names of their types.

    They stay in the file's blocks and go through XLA; nothing is read but the file's header.
    """
    layout = layout_name(implementation)
    matrices = {name: raw for name, raw in file.tensors.items() if raw.ggml_type.block_size > 1 and len(raw.shape) > 1}
    return {
        name: raw.ggml_type.name
        for name, raw in matrices.items()
        if quant.layout_for(layout, raw.ggml_type, raw.shape) != layout
    }


def _warn_of_fallbacks(file: GGUFFile, implementation: str) -> None:
    missing = fallbacks(file, implementation)
    if missing:
        kinds = ", ".join(sorted(set(missing.values())))
        warnings.warn(
            f"implementation {implementation!r} has no kernels for {kinds}: {len(missing)} weights go through XLA",
            stacklevel=3,
        )


def _placed(device: Any, name: str, raw: RawTensor, layout: str) -> Any:
    """Where a tensor goes: a device or sharding as it is, or its split over a mesh."""
    if not isinstance(device, Mesh):
        return device
    return named_sharding(device, weight_split(name, quant.abstract(raw, layout).units, device.shape))
