"""Metadata of any shape gives a tokenizer that works, or a TokenizerError."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_vocabulary import byte_letters
from small_vocabulary import byte_level, sentencepiece, space_marked, unigram, wordpiece

from realm_jax.tokenizer import Tokenizer, TokenizerError

FILES = {
    "gpt2": byte_level(byte_letters()),
    "llama": sentencepiece(),
    "t5": unigram(precompiled_charsmap=np.zeros(8, np.uint8)),
    "bert": wordpiece(),
    "gemma4": space_marked(),
}
ODD_TEXTS = st.sampled_from(["", "\0", "\udcff", "he", "a b", " ", "<s>", "x" * 20000, "\u2581", "<0x41>"])
ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.text(max_size=2), max_size=3),
    st.lists(st.integers(-9, 300), max_size=300).map(np.array),
)


@st.composite
def mutants(draw, name):
    metadata = dict(FILES[name])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(metadata)))
        if isinstance(metadata[key], list) and metadata[key] and draw(st.booleans()):
            texts = list(metadata[key])
            texts[draw(st.integers(0, len(texts) - 1))] = draw(ODD_TEXTS)
            metadata[key] = texts
        elif isinstance(metadata[key], np.ndarray) and metadata[key].size and draw(st.booleans()):
            numbers = metadata[key].copy()
            numbers[draw(st.integers(0, len(numbers) - 1))] = draw(st.integers(0, 100))
            metadata[key] = numbers
        elif key != "tokenizer.ggml.model":
            metadata[key] = draw(ODD_VALUES)
    return metadata


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_mutants(name, data):
    metadata = data.draw(mutants(name))
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    except TokenizerError:
        return
    for text in ("hello <s> w\u00f6rld\n", "", "\0"):
        assert isinstance(tokenizer.decode(tokenizer.encode(text)), str)
    assert isinstance(tokenizer.decode(range(tokenizer.vocab_size)), str)
