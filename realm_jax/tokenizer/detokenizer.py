"""Turns a stream of token ids into text without ever splitting a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["StreamDetokenizer"]


class StreamDetokenizer:
    """Collects the bytes of tokens and gives out whole characters.

    The texts from `push`, joined, and `flush` equal the bytes of all tokens decoded at once with
    `errors="replace"`: bytes that can no longer become a character are U+FFFD, given out as soon as that
    is certain.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add one token; return the characters it completes, maybe none."""
        return self._decoder.decode(self._piece(token_id))

    def flush(self) -> str:
        """End the text: an unfinished character becomes U+FFFD. The next `push` starts a new text."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
