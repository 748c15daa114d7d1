"""The token table: texts, types, special ids and flags, read from GGUF metadata."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realm_jax.tokenizer.errors import TokenizerError

__all__ = ["TokenType", "Vocabulary", "read_vocabulary"]

PREFIX = "tokenizer.ggml."
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class TokenType(enum.IntEnum):
    """Values of `tokenizer.ggml.token_type` (SentencePiece's piece types, offset by GGUF)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token texts and types; `types` is int8[vocab], `scores` is float32[vocab] or None when the file has none.

    `ids` is text to id. Texts must differ: a second id for the same text could never be produced.
    """

    tokens: Sequence[str]
    ids: Mapping[str, int]
    types: np.ndarray
    scores: np.ndarray | None

    def __len__(self) -> int:
        return len(self.tokens)

    def of_type(self, *types: TokenType) -> list[int]:
        """Ids of the given types, ascending."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def retyped(self, changes: Mapping[int, TokenType]) -> Vocabulary:
        """The same table with the types of some ids replaced."""
        if not changes:
            return self
        types = self.types.copy()
        for token_id, kind in changes.items():
            types[token_id] = kind
        return dataclasses.replace(self, types=types)


def _per_token(metadata: Mapping[str, Any], name: str, count: int, dtype: type) -> np.ndarray | None:
    values = metadata.get(PREFIX + name)
    if values is None:
        return None
    numbers = np.asarray(values if isinstance(values, (np.ndarray, list, tuple)) else ())
    if numbers.ndim != 1 or len(numbers) < count or not np.issubdtype(numbers.dtype, np.number):
        raise TokenizerError(
            f"{PREFIX}{name} must hold one number for each of the {count} tokens, got {len(numbers)} of {numbers.dtype}"
        )
    return numbers[:count].astype(dtype)


def _types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> np.ndarray:
    """Types as int8; a number that names none is UNDEFINED. Byte tokens must name their byte."""
    values = _per_token(metadata, "token_type", len(tokens), np.int64)
    if values is None:
        return np.full(len(tokens), TokenType.NORMAL, np.int8)
    types = np.where(np.isin(values, list(TokenType)), values, TokenType.UNDEFINED).astype(np.int8)
    for token_id in np.flatnonzero(types == TokenType.BYTE).tolist():
        if not _BYTE_TOKEN.fullmatch(tokens[token_id]):
            raise TokenizerError(f"a byte token must read like <0x0A>, got {tokens[token_id]!r} at {token_id}")
    return types


def _ids(tokens: Sequence[str]) -> Mapping[str, int]:
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        double = next(text for i, text in enumerate(tokens) if ids[text] != i)
        raise TokenizerError(f"{PREFIX}tokens must be distinct, got {double!r} more than once")
    return ids


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read tokens, types and scores; an empty text becomes `[EMPTY_<id>]`, as llama.cpp names it."""
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not tokens:
        raise TokenizerError(f"{PREFIX}tokens must be a non-empty array of strings; the file has no vocabulary")
    tokens = list(tokens)
    if "" in tokens:
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    types = _types(metadata, tokens)
    scores = _per_token(metadata, "scores", len(tokens), np.float32)
    return Vocabulary(tokens=tokens, ids=_ids(tokens), types=types, scores=scores)
