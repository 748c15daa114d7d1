"""The library's tokens are the tokenizer's, byte for byte, and text is never written with control or end tokens."""

import pytest
from grammar_steps import NAMES, allowed
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from realm_jax.structured import GrammarCompiler, StructuredOutputs
from realm_jax.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t"), min_size=1, max_size=20)


def test_every_token_has_the_bytes_that_it_decodes_to(model) -> None:
    tokenizer, compiler = model
    library = compiler.tokenizer
    assert library.vocab_size == compiler.vocab_size
    special = tokenizer.hidden_ids | tokenizer.end_ids
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.id_to_piece(token)
        assert library.is_special_token(token) == (token in special)
        if not piece.startswith(b"\xff"):  # 0xFF is in no UTF-8 text; the library marks special tokens with it
            assert library.decode_bytes([token]) == piece, token


def test_every_token_that_is_text_may_come_where_its_text_may(model) -> None:
    """Duplicates too: SentencePiece has most letters as a byte and as a piece."""
    tokenizer, compiler = model
    state = compiler.start(StructuredOutputs(regex="[a-z]+"))
    special = tokenizer.hidden_ids | tokenizer.end_ids
    fitting = [
        token
        for token in range(tokenizer.vocab_size)
        if token not in special and (piece := tokenizer.id_to_piece(token)).isalpha() and piece.islower()
    ]
    assert allowed(state, compiler) == fitting
    assert state.accept(fitting[0])
    assert allowed(state, compiler) == sorted([*fitting, *tokenizer.end_ids])


@settings(max_examples=50)
@given(data=st.data())
def test_forced_text_comes_out_as_it_is(compilers, data) -> None:
    name = data.draw(st.sampled_from(NAMES))
    tokenizer, compiler = compilers(name)
    text = data.draw(TEXT)
    assume(name != "smollm2" or _expressible(tokenizer, text))
    state = compiler.start(StructuredOutputs(choice=[text]))
    written = b""
    while not state.finished:
        (token,) = state.forced_tokens()[:1] or allowed(state, compiler)[:1]
        assert state.accept(token)
        written += tokenizer.id_to_piece(token)
    assert written.decode() == text


def _expressible(tokenizer, text: str) -> bool:
    """Whether the vocabulary has tokens for the text; SmolLM2 lacks some bytes."""
    return tokenizer.decode(tokenizer.encode_continuation(text)) == text


@pytest.mark.parametrize(
    ("name", "text"), [("gemma3", "<s>old</s> new"), ("pieces", "an <eos> inside"), ("smollm2", "<|im_end|>")]
)
def test_an_end_token_never_stands_for_its_text(compilers, name, text) -> None:
    tokenizer, compiler = compilers(name)
    state = compiler.start(StructuredOutputs(choice=[text]))
    tokens = []
    while not state.finished:
        options = allowed(state, compiler)
        assert (tokenizer.hidden_ids | tokenizer.end_ids).isdisjoint(options)
        tokens.append(options[0])
        assert state.accept(options[0])
    assert tokenizer.decode(tokens) == text


def test_text_continues_without_a_space_in_front(compilers) -> None:
    tokenizer, _ = compilers("pieces")
    assert tokenizer.decode(tokenizer.encode("hello", add_special=False)) == " hello"
    assert tokenizer.decode(tokenizer.encode_continuation("hello")) == "hello"
    control = tokenizer.encode_continuation("<s>")
    assert tokenizer.bos_id not in control
    assert tokenizer.decode(control) == "<s>"


def test_plain_text_is_written_as_the_tokenizer_writes_it(model) -> None:
    tokenizer, compiler = model
    text = '{"name": "hello world", "n": 12}'
    assert compiler.tokenizer.tokenize_str(text) == tokenizer.encode_continuation(text)


def test_a_grammar_may_name_a_control_token(compilers) -> None:
    tokenizer, compiler = compilers("bytes")
    (begin,) = tokenizer.encode("<|im_start|>", add_special=False)
    state = compiler.start(StructuredOutputs(grammar='start: <|im_start|> "a"'))
    assert allowed(state, compiler) == [begin]


def test_tokens_that_the_library_cannot_hold_never_come() -> None:
    tokens = [*"ab", "a" * 1024, "a" * 1023, "</s>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 4,
    }
    compiler = GrammarCompiler(Tokenizer.from_gguf(metadata), 5)
    assert allowed(compiler.start(StructuredOutputs(regex="a+")), compiler) == [0, 3]


def test_what_does_not_belong_together_is_refused(small) -> None:
    tokenizer, _ = small
    with pytest.raises(ValueError, match="vocab_size must be at least the tokenizer's 256, got 255"):
        GrammarCompiler(tokenizer, 255)
    endless = Tokenizer.from_gguf(
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []}
    )
    with pytest.raises(ValueError, match="needs an end token"):
        GrammarCompiler(endless, 2)
