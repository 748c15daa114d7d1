"""Realm-JAX runs GGUF language models as pure JAX programs whose weights stay quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realm_jax.llm import LLM
    from realm_jax.sampling import RequestOutputKind, SamplingParams
    from realm_jax.sharding import MeshConfig
    from realm_jax.structured import StructuredOutputs

__all__ = ["LLM", "MeshConfig", "RequestOutputKind", "SamplingParams", "StructuredOutputs"]


def __getattr__(name: str) -> Any:
    # JAX takes seconds to import, and parts of the package (gguf, tokenizer, most of the command line) do without it.
    if name == "LLM":
        from realm_jax.llm import LLM

        return LLM
    if name == "MeshConfig":
        from realm_jax.sharding import MeshConfig

        return MeshConfig
    if name == "RequestOutputKind":
        from realm_jax.sampling import RequestOutputKind

        return RequestOutputKind
    if name == "SamplingParams":
        from realm_jax.sampling import SamplingParams

        return SamplingParams
    if name == "StructuredOutputs":
        from realm_jax.structured import StructuredOutputs

        return StructuredOutputs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
