"""Structured output: what a caller may constrain an output to, and the tokens that a grammar allows next."""

from realm_jax.structured.compiler import GrammarCompiler
from realm_jax.structured.outputs import StructuredOutputs
from realm_jax.structured.state import GrammarState

__all__ = ["GrammarCompiler", "GrammarState", "StructuredOutputs"]
