"""The tokenizers that grammars are tested over: two real ones, one of bytes, one of SentencePiece pieces."""

import functools

import numpy as np
import pytest
import tiny_chat
from grammar_steps import NAMES

import realm_jax.gguf
from realm_jax.structured import GrammarCompiler
from realm_jax.tokenizer import Tokenizer

# Logits beyond the tokenizer's, so that the last word of a mask is partly used, as models with padded heads have.
EXTRA_LOGITS = 5


def _pieces() -> Tokenizer:
    """Return a `llama` vocabulary: bytes, the same letters as pieces, and an end token that is typed as text."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["he", "ll", "hell", "hello", "\u2581hello", '{"', '":', '",', "true", "\u2581\u2581"]
    words += [chr(code) for code in range(0x21, 0x7F)] + ["\u2581", "<eos>"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) - 1) + [4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts + words,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.scores": np.array(scores, np.float32),
        }
    )


def _of_file(path) -> Tokenizer:
    with realm_jax.gguf.open(path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="session")
def compilers(request, tmp_path_factory):
    """A function from a name to a tokenizer and its compiler, each built once."""

    def tokenizer(name: str) -> Tokenizer:
        if name == "pieces":
            return _pieces()
        if name != "bytes":
            return _of_file(request.getfixturevalue(f"{name}_path"))
        tiny = tmp_path_factory.mktemp("grammar") / "tiny.gguf"
        tiny_chat.write(tiny)
        return _of_file(tiny)

    @functools.cache
    def build(name: str):
        built = tokenizer(name)
        return built, GrammarCompiler(built, built.vocab_size + EXTRA_LOGITS)

    return build


@pytest.fixture(scope="session", params=NAMES)
def model(request, compilers):
    """A tokenizer and its compiler."""
    return compilers(request.param)


@pytest.fixture(scope="session")
def small(compilers):
    """The byte tokenizer and its compiler."""
    return compilers("bytes")
