"""Splits text at special tokens before any model-specific tokenisation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["Partition"]

C_SPACE = " \t\n\v\f\r"
_PREFIX = 4


class Partition:
    """Cuts a text into special token ids and the plain text between them.

    Longer tokens claim their places first, and equal lengths in order of id (llama.cpp's rule), so a
    token inside a longer one never matches. `lstrip` and `rstrip` name tokens that swallow the white
    space to their left or right.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        special: Iterable[int],
        *,
        lstrip: frozenset[int] = frozenset(),
        rstrip: frozenset[int] = frozenset(),
    ) -> None:
        order = sorted(special, key=lambda i: (-len(tokens[i].encode("utf-8", "surrogateescape")), i))
        self._order = [(tokens[i], i) for i in order]
        self._lstrip, self._rstrip = lstrip, rstrip
        # Vocabularies reserve thousands of tokens that share a beginning ("<unused17>"): one look for
        # the beginning spares a look for each of them.
        self._by_prefix: dict[str, list[int]] = defaultdict(list)
        for rank, (text, _) in enumerate(self._order):
            self._by_prefix[text[:_PREFIX]].append(rank)

    def split(self, text: str) -> list[str | int]:
        """Return plain fragments (never empty) and special ids in reading order."""
        ranks = sorted(r for prefix, group in self._by_prefix.items() if prefix in text for r in group)
        fragments: list[str | int] = [text] if text else []
        for rank in ranks:
            special, token_id = self._order[rank]
            if special in text:
                fragments = [
                    part
                    for fragment in fragments
                    for part in ([fragment] if isinstance(fragment, int) else self._cut(fragment, special, token_id))
                ]
        return fragments

    def _cut(self, fragment: str, special: str, token_id: int) -> list[str | int]:
        """Cut one fragment at every occurrence of one token."""
        pieces = fragment.split(special)
        parts: list[str | int] = []
        for i, piece in enumerate(pieces):
            if i:
                parts.append(token_id)
                if token_id in self._rstrip:
                    piece = piece.lstrip(C_SPACE)
            if token_id in self._lstrip and i + 1 < len(pieces):
                piece = piece.rstrip(C_SPACE)
            if piece:
                parts.append(piece)
        return parts
