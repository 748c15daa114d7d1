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


def unigram(**flags):
    """A `t5` vocabulary: pieces with log-probabilities."""
    pieces = [("<pad>", CONTROL, 0.0), ("</s>", CONTROL, 0.0), ("<unk>", UNKNOWN, 0.0), (SPACE, NORMAL, -4.0)]
    pieces += [(SPACE + "un", NORMAL, -2.0), ("do", NORMAL, -2.0), (SPACE + "undo", NORMAL, -5.0), ("a", NORMAL, -3.0)]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.token_type": np.array([kind for _, kind, _ in pieces], np.int32),
        "tokenizer.ggml.scores": np.array([score for _, _, score in pieces], np.float32),
        "tokenizer.ggml.add_space_prefix": True,
        **{f"tokenizer.ggml.{name}": value for name, value in flags.items()},
    }


def space_marked():
    """A `gemma4` vocabulary: characters, U+2581 for the space, bytes for the rest."""
    pieces = [("<eos>", CONTROL), ("<bos>", CONTROL)] + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    pieces += [(text, NORMAL) for text in [SPACE, "a", "b", "\n", "ab", SPACE + "ab", "\n\n"]]
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [text for text, _ in pieces],
        "tokenizer.ggml.token_type": np.array([kind for _, kind in pieces], np.int32),
        "tokenizer.ggml.merges": ["a b", f"{SPACE} ab", "\n \n"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
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
