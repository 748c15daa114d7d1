"""What every tokenizer model provides: the ids of plain text, and the bytes of one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from realm_jax.tokenizer.vocabulary import TokenType, Vocabulary

__all__ = ["Encoder", "SPACE_MARK", "is_text", "literal_piece"]

SPACE_MARK = "\u2581"  # SentencePiece writes a space so


class Encoder(Protocol):
    """A tokenizer model without its special tokens."""

    def encode(self, fragment: str, after_special: bool) -> Sequence[int]:
        """Ids of a non-empty text without special tokens; `after_special` if it begins the text or follows one."""
        ...

    def piece(self, token_id: int) -> bytes:
        """The bytes that the token stands for; part of a UTF-8 character at times."""
        ...


def is_text(token: str) -> bool:
    """Whether a token is valid Unicode; the rest (bytes kept as lone surrogates) can be decoded, never encoded."""
    return token.isascii() or not any("\ud800" <= char <= "\udfff" for char in token)


def literal_piece(vocabulary: Vocabulary, token_id: int) -> bytes | None:
    """Bytes of a token whose text is not in the model's own alphabet; None for an ordinary one."""
    text = vocabulary.tokens[token_id]
    match TokenType(vocabulary.types[token_id]):
        case TokenType.NORMAL:
            return None
        case TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        case TokenType.UNUSED | TokenType.UNDEFINED:  # padding of the vocabulary to a round size
            return b""
        case _:
            return text.encode("utf-8", "surrogateescape")
