"""The engine: requests, scheduling over a paged KV cache, and the runner that holds the compiled programs."""

from realm_jax.engine.async_engine import AsyncLLMEngine, EngineBusy, EngineClosed
from realm_jax.engine.engine import Engine, EngineConfig
from realm_jax.engine.llm_engine import LLMEngine
from realm_jax.engine.request import Prompt, Request, RequestFactory
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence

__all__ = [
    "AsyncLLMEngine",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineConfig",
    "LLMEngine",
    "Prompt",
    "Request",
    "RequestFactory",
    "Runner",
    "Sequence",
]
