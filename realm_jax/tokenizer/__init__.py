"""GGUF metadata to tokenizer and chat template."""

from realm_jax.tokenizer.chat_template import ChatTemplate
from realm_jax.tokenizer.detokenizer import StreamDetokenizer
from realm_jax.tokenizer.errors import ChatTemplateError, TokenizerError
from realm_jax.tokenizer.template_bounds import TemplateLimits
from realm_jax.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "StreamDetokenizer",
    "TemplateLimits",
    "Tokenizer",
    "TokenizerError",
]
