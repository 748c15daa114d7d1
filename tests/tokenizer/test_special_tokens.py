"""Special tokens: which are read from text, which surround it, which end a generation."""

import pytest
from pair_vocabulary import byte_letters
from small_vocabulary import (
    CONTROL,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    byte_level,
    sentencepiece,
    space_marked,
    unigram,
    wordpiece,
)

from realm_jax.tokenizer import Tokenizer, TokenizerError


def pieces(tokenizer, text, **options):
    return [tokenizer.id_to_piece(token_id).decode("latin-1") for token_id in tokenizer.encode(text, **options)]


@pytest.fixture(scope="module")
def marked():
    extra = [("<|ctl|>", CONTROL), ("[tag]", USER_DEFINED), ("[tag]s", USER_DEFINED), ("<|im_end|>", NORMAL)]
    return Tokenizer.from_gguf(byte_level(byte_letters(), extra))


def test_control_tokens_are_read_only_when_asked(marked):
    assert pieces(marked, "hey<|ctl|>", parse_special=True) == ["hey", "<|ctl|>"]
    assert pieces(marked, "hey<|ctl|>", parse_special=False) == ["hey", *"<|ctl|>"]


def test_user_defined_tokens_are_always_read(marked):
    for parse_special in (True, False):
        assert pieces(marked, "hey[tag]he", parse_special=parse_special) == ["hey", "[tag]", "he"]


def test_longer_tokens_win(marked):
    assert pieces(marked, "[tag]s[tag]") == ["[tag]s", "[tag]"]


def test_an_end_token_typed_as_text_is_a_control_token(marked):
    assert pieces(marked, "<|im_end|>", parse_special=True) == ["<|im_end|>"]
    assert len(pieces(marked, "<|im_end|>", parse_special=False)) == 10
    assert marked.decode(marked.encode("hey<|im_end|>"), skip_special=True) == "hey"


def test_skipping_keeps_user_defined_tokens(marked):
    ids = marked.encode("he[tag]<|ctl|>y")
    assert marked.decode(ids, skip_special=True) == "he[tag]y"
    assert marked.decode(ids) == "he[tag]<|ctl|>y"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ["<s>", " hello"]),
        ({"add_bos_token": False}, [" hello"]),
        ({"add_eos_token": True}, ["<s>", " hello", "</s>"]),
        ({"add_space_prefix": False}, ["<s>", "hello"]),
        ({"bos_token_id": 2}, ["</s>", " hello"]),
        ({"bos_token_id": 10**6}, ["<s>", " hello"]),
    ],
)
def test_flags_of_the_file(flags, expected):
    tokenizer = Tokenizer.from_gguf(sentencepiece(**flags))
    assert pieces(tokenizer, "hello") == expected
    assert pieces(tokenizer, "hello", add_special=False) == [p for p in expected if p not in ("<s>", "</s>")]


def test_space_prefix_follows_special_tokens():
    tokenizer = Tokenizer.from_gguf(sentencepiece([("<|u|>", CONTROL)]))
    assert pieces(tokenizer, "hello<|u|>world", add_special=False) == [" hello", "<|u|>", " world"]


def test_phi_3_swallows_space_after_special_tokens():
    metadata = sentencepiece([("<|user|>", CONTROL), ("<|endoftext|>", CONTROL)])
    metadata["general.name"] = "Phi-3 mini"
    tokenizer = Tokenizer.from_gguf(metadata)
    assert pieces(tokenizer, "<|user|>\n hello", add_special=False) == ["<|user|>", " hello"]
    assert pieces(tokenizer, "<|endoftext|>\n", add_special=False) == ["<|endoftext|>", " ", "\n"]


def test_bert_surrounds_and_splits_words():
    tokenizer = Tokenizer.from_gguf(wordpiece())
    text = [piece.replace(" ", "_") for piece in pieces(tokenizer, "Hello,  unaffable café zzz")]
    assert text == ["[CLS]", "_hello", "_,", "_un", "affable", "_cafe", "[UNK]", "[SEP]"]


def test_unigram_takes_the_likeliest_pieces_and_ends_the_text():
    tokenizer = Tokenizer.from_gguf(unigram())
    assert pieces(tokenizer, "undo a") == [" un", "do", " ", "a", "</s>"]  # -4 beats -5
    assert pieces(tokenizer, "a  zz") == [" ", "a", " ", " ", "<unk>", "</s>"]
    merging = Tokenizer.from_gguf(unigram(remove_extra_whitespaces=True))
    assert pieces(merging, "  a   a ", add_special=False) == [" ", "a", " ", "a"]


def test_space_marked_merges_fall_back_to_bytes():
    tokenizer = Tokenizer.from_gguf(space_marked())
    assert pieces(tokenizer, "ab ab\n\n\u00e9") == ["<bos>", "ab", " ab", "\n\n", "\xc3", "\xa9"]
    assert tokenizer.decode(tokenizer.encode(" a\u00e9 b"), skip_special=True) == " a\u00e9 b"


def ends(*texts, **flags):
    tokenizer = Tokenizer.from_gguf(byte_level(byte_letters(), [(text, CONTROL) for text in texts], **flags))
    return {tokenizer.id_to_piece(token_id).decode() for token_id in tokenizer.end_ids}


def test_end_tokens_by_id_and_by_name():
    assert ends("<a>", "<b>", "<c>", eos_token_id=258, eot_token_id=259, eom_token_id=260) == {"<a>", "<b>", "<c>"}
    assert ends("<|eot_id|>", "<end_of_turn>", "<x>") == {"<|eot_id|>", "<end_of_turn>"}
    assert ends("<|fim_pad|>", "<|fim_prefix|>", "<|file_sep|>") == {"<|fim_pad|>", "<|file_sep|>"}


def test_end_tokens_that_neighbours_make_ordinary():
    assert ends("<|end|>", "<|return|>") == {"<|end|>", "<|return|>"}
    assert ends("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}
    assert ends("</s>", "<|tool_response>") == {"<|tool_response>"}


def test_gpt_oss_shows_its_channel_headers():
    tokenizer = Tokenizer.from_gguf(byte_level(byte_letters(), [("<|channel|>", CONTROL), ("<|return|>", CONTROL)]))
    assert tokenizer.decode(tokenizer.encode("<|channel|>hey<|return|>"), skip_special=True) == "<|channel|>hey"


def test_padding_of_the_vocabulary_is_silent():
    tokenizer = Tokenizer.from_gguf(byte_level(byte_letters(), [("[PAD0]", UNUSED)]))
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == ""


def test_plain_text_never_becomes_a_control_token():
    tokenizer = Tokenizer.from_gguf(sentencepiece([("<s", NORMAL)]))
    assert tokenizer.bos_id not in tokenizer.encode("<s>", add_special=False, parse_special=False)
    assert SPACE not in tokenizer.decode(tokenizer.encode("a <s> b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, r"model must be one of bert, gemma4, gpt2, llama, t5, got 'rwkv'"),
        ({"model": None}, r"model must be one of"),
        ({"tokens": None}, r"tokens must be a non-empty array"),
        ({"tokens": []}, r"tokens must be a non-empty array"),
        ({"scores": None}, r"scores is missing"),
        ({"scores": [0.0]}, r"scores must hold one number for each of the \d+ tokens, got 1"),
        ({"token_type": [1, 2]}, r"token_type must hold one number"),
        ({"add_bos_token": 3}, r"add_bos_token must be a boolean, got 3"),
    ],
)
def test_errors_name_the_field(changes, message):
    metadata = sentencepiece() | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata)


def test_double_tokens_and_bad_merges_are_errors():
    metadata = byte_level(byte_letters())
    with pytest.raises(TokenizerError, match="distinct, got 'he' more than once"):
        Tokenizer.from_gguf(byte_level(byte_letters(), [("he", NORMAL)]))
    with pytest.raises(TokenizerError, match="merges is missing"):
        Tokenizer.from_gguf({key: value for key, value in metadata.items() if not key.endswith("merges")})
    with pytest.raises(TokenizerError, match="two texts with a space between, got 'he'"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": ["he"]})


def test_merges_of_tokens_that_do_not_exist_are_passed_over():
    metadata = byte_level(byte_letters()) | {"tokenizer.ggml.merges": ["h e", "z z", "he y"]}
    assert pieces(Tokenizer.from_gguf(metadata), "heyzz") == ["hey", "z", "z"]
