"""Turns a stream of token ids into text without ever splitting a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["StreamDetokenizer"]


class StreamDetokenizer:
    """Collects the bytes of tokens and gives out whole characters.

    The texts from `push`, joined, and `flush` equal the bytes of all tokens decoded at once with
    `errors="replace"`: bytes that can no longer become a character are U+FFFD, given out as soon as that
    is certain. `prefixed_after`, where given, is a token after which, if it comes first, one space is
    dropped: the one that encoding put in front of the text. A stream that begins otherwise continues a
    text, and its first space belongs to it.
    """

    def __init__(self, piece: Callable[[int], bytes], *, prefixed_after: int | None = None) -> None:
        self._piece, self._prefixed_after = piece, prefixed_after
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = False
        self._empty = True

    def push(self, token_id: int) -> str:
        """Add one token; return the characters it completes, maybe none."""
        piece = self._piece(token_id)
        if self._drop_space:
            piece = piece.removeprefix(b" ")
        self._drop_space = self._empty and token_id == self._prefixed_after
        self._empty = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """End the text: an unfinished character becomes U+FFFD. The next `push` starts a new text."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._drop_space, self._empty = False, True
        return text
