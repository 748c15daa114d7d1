"""A vocabulary in which every two bytes merge, so that ids show where a pre-tokenizer cut the text."""

from collections.abc import Sequence


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest for U+0100 upward in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def pairs() -> list[tuple[str, str]]:
    """All pairs of letters in a fixed order that looks like none (an odd factor permutes 0..65535)."""
    letters = byte_letters()
    return [(letters[k >> 8], letters[k & 0xFF]) for k in ((i * 40503) % 65536 for i in range(65536))]


def tokens() -> list[str]:
    """The bytes, then the pairs in the order of their ranks: a token's id is also its rank for tiktoken."""
    return byte_letters() + [left + right for left, right in pairs()]


def metadata(pre: str, extra: Sequence[str] = ()) -> dict[str, object]:
    """What a GGUF file with this vocabulary says about it; `extra` tokens come last, as control tokens."""
    texts = [*tokens(), *extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [1] * (len(texts) - len(extra)) + [3] * len(extra),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs()],
    }
