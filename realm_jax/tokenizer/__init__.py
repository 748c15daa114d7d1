"""GGUF metadata to tokenizer and chat template."""

from realm_jax.tokenizer.detokenizer import StreamDetokenizer
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDetokenizer", "Tokenizer", "TokenizerError"]
