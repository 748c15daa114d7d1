"""Text survives encoding and decoding, whole and streamed."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_vocabulary import byte_letters
from small_vocabulary import byte_level, sentencepiece

from realm_jax.tokenizer import Tokenizer, TokenizerError

# No lone surrogates: they are no text, and encode refuses them. SmolLM2's vocabulary lacks some bytes, so that certain
# control characters and all above U+3FFFF (private and unassigned) vanish there, as they do in llama.cpp. SentencePiece
# writes a space as U+2581, which is therefore no character of its own in its texts.
LETTERS = st.characters(
    max_codepoint=0x3FFFF, exclude_categories=("Cs", "Cc"), include_characters="\t\n\r", exclude_characters="\u2581"
)
TEXT = st.text(LETTERS, max_size=40)
SMALL = {
    "bpe": Tokenizer.from_gguf(byte_level(byte_letters())),
    "spm": Tokenizer.from_gguf(sentencepiece(add_space_prefix=False, add_bos_token=False)),
}
steady = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module", params=["bpe", "spm", "smollm2", "gemma3"])
def tokenizer(request):
    return SMALL[request.param] if request.param in SMALL else request.getfixturevalue(request.param)


@steady
@given(text=TEXT)
def test_decode_inverts_encode(tokenizer, text):
    for parse_special in (True, False):
        assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=parse_special)) == text


@steady
@given(data=st.data())
def test_streaming_equals_decoding(tokenizer, data):
    """Any ids, characters cut anywhere: the stream gives the same text and never a partial character."""
    ids = data.draw(st.lists(st.integers(0, min(tokenizer.vocab_size, 600) - 1), max_size=30))
    for skip_special in (True, False):
        stream = tokenizer.detokenizer(skip_special=skip_special)
        parts = [stream.push(token_id) for token_id in ids]
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special=skip_special)
    whole = b"".join(map(tokenizer.id_to_piece, ids))
    assert tokenizer.decode(ids) == whole.decode("utf-8", "replace")


@steady
@given(text=TEXT)
def test_no_push_ends_inside_a_character(text):
    """Byte by byte, a character appears when its last byte does."""
    tokenizer = SMALL["spm"]
    stream = tokenizer.detokenizer()
    seen = "".join(stream.push(3 + byte) for byte in text.encode())
    assert seen == text
    assert stream.flush() == ""


def test_an_unfinished_character_is_replaced_at_the_end():
    stream = SMALL["spm"].detokenizer()
    assert [stream.push(3 + byte) for byte in b"\xe2\x82"] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(3 + ord("a")) == "a"


def test_a_character_given_up_appears_at_once():
    stream = SMALL["spm"].detokenizer()
    assert [stream.push(3 + byte) for byte in b"\xe2a"] == ["", "\ufffda"]


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_lone_surrogates_are_refused(tokenizer, text):
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer.encode(text)


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"got {token_id}"):
            tokenizer.id_to_piece(token_id)


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "<" * 200_000], ids=["letters", "spaces", "signs"])
def test_long_texts_of_one_letter(tokenizer, text):
    """Nothing quadratic: at 1 MB such a step would take hours, not a second."""
    counts = Counter(tokenizer.encode(text, add_special=False))
    assert sum(len(tokenizer.id_to_piece(token_id)) * count for token_id, count in counts.items()) == len(text)


@pytest.mark.parametrize("text", ["hello", " hello", "", "  world", "x\u2581y"])
def test_the_space_before_a_text_is_taken_off_again(text):
    tokenizer = Tokenizer.from_gguf(sentencepiece())
    ids = tokenizer.encode(text)
    spaced = text.replace("\u2581", " ")  # the vocabulary has one sign for both
    assert tokenizer.decode(ids) == "<s>" + spaced
    assert tokenizer.decode(ids, skip_special=True) == spaced
    assert tokenizer.decode(ids[1:]) == (" " + spaced if text else "")
