"""Small vocabularies of each tokenizer model, written by hand for tests."""

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"


def sentencepiece(extra=(), **flags):
    """A `llama` vocabulary: 3 special tokens, 256 bytes, single letters and a few words; then `extra` (text, type)."""
    pieces = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    pieces += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    words = ["he", "ll", "hell", "hello", SPACE + "hello", "wo", "wor", "ld", "world", SPACE + "world", SPACE + SPACE]
    pieces += [(word, NORMAL, -float(rank)) for rank, word in enumerate([*words, SPACE + "w", SPACE + "h"], 1)]
    pieces += [(letter, NORMAL, -100.0 - i) for i, letter in enumerate(SPACE + "abcdefghijklmnopqrstuvwxyz<>/|")]
    pieces += [(text, kind, 0.0) for text, kind in extra]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.token_type": np.array([kind for _, kind, _ in pieces], np.int32),
        "tokenizer.ggml.scores": np.array([score for _, _, score in pieces], np.float32),
        **{f"tokenizer.ggml.{name}": value for name, value in flags.items()},
    }


def byte_level(letters, extra=(), pre="gpt-2", **flags):
    """A `gpt2` vocabulary: the 256 bytes as `letters`, the merges h+e and he+y, then `extra` (text, type)."""
    pieces = [(letter, NORMAL) for letter in letters] + [("he", NORMAL), ("hey", NORMAL), *extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [text for text, _ in pieces],
        "tokenizer.ggml.token_type": np.array([kind for _, kind in pieces], np.int32),
        "tokenizer.ggml.merges": ["h e", "he y"],
        **{f"tokenizer.ggml.{name}": value for name, value in flags.items()},
    }


def wordpiece(**flags):
    """A `bert` vocabulary: word beginnings carry U+2581."""
    texts = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *(SPACE + word for word in ("hello", "un", "a", ",", "cafe")),
        "affable",
    ]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array([CONTROL] * 4 + [NORMAL] * (len(texts) - 4), np.int32),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        **{f"tokenizer.ggml.{name}": value for name, value in flags.items()},
    }
