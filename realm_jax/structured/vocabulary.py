"""A GGUF tokenizer as llguidance wants it: the bytes of every token, and how text is tokenised."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from realm_jax.structured.library import llguidance
from realm_jax.tokenizer import Tokenizer

# llguidance keeps the bytes of tokens in a tree of at most 1,024 bytes' depth, and puts 0xFF before special tokens.
_LONGEST_TOKEN = 1023
_SPECIAL_MARK = b"\xff"


class GrammarVocabulary:
    """The tokens of a model with `vocab_size` logits, and the tokenizer's way to write plain text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.end_ids = frozenset(tokenizer.end_ids)
        if not self.end_ids:
            raise ValueError("structured output needs an end token, and this file's tokenizer names none")
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, got {vocab_size}; "
                "the model and its tokenizer do not belong together"
            )
        # Some files type an end token as text (Gemma's "</s>"); in a string it would end the output all the same.
        self._not_text = tokenizer.hidden_ids | self.end_ids
        pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size)]
        # A token without bytes never comes: logits that have no token, and pieces that the tree cannot hold.
        self.tokens = [piece if _fits(piece) else b"" for piece in pieces] + [b""] * (vocab_size - len(pieces))

    # What llguidance's TokenizerWrapper reads.
    @property
    def eos_token_id(self) -> int:
        """The end token that comes first in messages."""
        eos = self._tokenizer.eos_id
        return min(self.end_ids) if eos is None else eos

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""
        return self._tokenizer.bos_id

    @property
    def special_token_ids(self) -> list[int]:
        """Tokens that are no text: a grammar may name them, no string contains them."""
        return sorted(self._not_text)

    def __call__(self, text: bytes) -> list[int]:
        """Tokenise text in the middle of an output, so that the tokens' bytes are those of the text."""
        ids = self._tokenizer.encode_continuation(text.decode())
        faithful = b"".join(self.tokens[token] for token in ids) == text and self._not_text.isdisjoint(ids)
        return ids if faithful else self._longest_tokens(text)

    def _longest_tokens(self, text: bytes) -> list[int]:
        """For text that the tokenizer writes as other bytes (U+2581) or with an end token: the longest token first."""
        ids, start = [], 0
        while start < len(text):
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            length = next((n for n in lengths if text[start : start + n] in self._by_bytes), None)
            if length is not None:
                ids.append(self._by_bytes[text[start : start + length]])
            start += length or 1
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.tokens) if piece and token not in self._not_text}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes))

    def build(self) -> Any:
        """The library's tokenizer, which holds a tree of all tokens: 0.1 to 1 s of work."""
        library = llguidance()
        ends = [self.eos_token_id, *sorted(self.end_ids - {self.eos_token_id})]
        return library.LLTokenizer(library.TokenizerWrapper(self), eos_token=ends)


def _fits(piece: bytes) -> bool:
    return len(piece) <= _LONGEST_TOKEN and not piece.startswith(_SPECIAL_MARK)
