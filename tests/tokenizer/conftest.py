"""The tokenizers of the two real models, built once for all tests."""

import pytest

import realm_jax.gguf
from realm_jax.tokenizer import Tokenizer


def tokenizer_of(path):
    """Build the tokenizer of a GGUF file."""
    with realm_jax.gguf.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    """Byte-level BPE, 49,152 tokens."""
    return tokenizer_of(smollm2_path)


@pytest.fixture(scope="session")
def gemma3(gemma3_path):
    """SentencePiece, 262,144 tokens."""
    return tokenizer_of(gemma3_path)
