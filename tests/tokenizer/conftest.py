"""The tokenizers of the two real models, built once for all tests."""

import pytest

import realm_jax.gguf
from realm_jax.tokenizer import Tokenizer


def _tokenizer_of(path):
    with realm_jax.gguf.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="session")
def tokenizer_of():
    """A function from a GGUF file to its tokenizer."""
    return _tokenizer_of


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    """Byte-level BPE, 49,152 tokens."""
    return _tokenizer_of(smollm2_path)


@pytest.fixture(scope="session")
def gemma3(gemma3_path):
    """SentencePiece, 262,144 tokens."""
    return _tokenizer_of(gemma3_path)
