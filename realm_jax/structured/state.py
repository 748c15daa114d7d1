"""GrammarState: where one sequence stands in its grammar, and which tokens may come next."""

from __future__ import annotations

from typing import Any

import numpy as np

from realm_jax.structured.library import error_of

WORD_BITS = 32


class GrammarState:
    """The tokens of one sequence so far, read by a grammar; made by `GrammarCompiler.start`.

    A state is used by one thread at a time. An end token is allowed where the output may end, and the state is
    `finished` after one, or as soon as nothing but an end token could come.
    """

    def __init__(self, matcher: Any, *, end_ids: frozenset[int], vocab_size: int) -> None:
        self.matcher = matcher
        self._end_ids, self._vocab_size = end_ids, vocab_size
        self._accepted = 0
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether the output is complete, or the grammar has failed (`error`)."""
        return self._ended or self.matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """Whether the output meets its constraint if it ends here."""
        return self._ended or self.matcher.is_accepting()

    @property
    def error(self) -> str | None:
        """Why the grammar cannot go on, such as a limit on its size; None while it can."""
        return error_of(self.matcher) if self.matcher.is_error() else None

    def fill(self, mask_row: np.ndarray) -> None:
        """Write which tokens may come next: bit `i % 32` of word `i // 32` is set if token i may.

        Args:
            mask_row: int32 or uint32[ceil(vocab_size / 32)], contiguous. Once finished, only end tokens are set.

        Raises:
            ValueError: the row has another shape or type.
        """
        words = -(-self._vocab_size // WORD_BITS)
        if mask_row.shape != (words,) or mask_row.dtype.kind not in "iu" or mask_row.itemsize != 4:
            raise ValueError(f"mask_row must be int32[{words}], got {mask_row.dtype}{list(mask_row.shape)}")
        if not mask_row.flags.c_contiguous or not mask_row.flags.writeable:
            raise ValueError("mask_row must be contiguous and writeable; pass one row of a C-ordered array")
        if self._ended:
            self._fill_end(mask_row)
        else:
            self.matcher.unsafe_compute_mask_ptr(mask_row.ctypes.data, mask_row.nbytes)

    def _fill_end(self, mask_row: np.ndarray) -> None:
        mask_row[:] = 0
        words = mask_row.view(np.uint32)
        for token in self._end_ids:
            words[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)

    def accept(self, token: int) -> bool:
        """Take the next token. False, and nothing has changed, if the grammar does not allow it."""
        if self._ended or not 0 <= token < self._vocab_size:
            return False
        if token in self._end_ids and self.complete and self.error is None:
            self._ended = True
        elif self.matcher.is_stopped() or not self.matcher.try_consume_tokens([token]):
            return False
        self._accepted += 1
        return True

    def forced_tokens(self) -> list[int]:
        """The tokens that must come next, as the tokenizer writes their text; empty where there is a choice.

        Masks allow exactly these, one after the other, so that taking them at once changes no output. They are not
        accepted yet, and no end token is among them.
        """
        return [] if self.finished else self.matcher.compute_ff_tokens()

    def rollback(self, count: int) -> None:
        """Take back the newest `count` accepted tokens. ValueError if there are fewer."""
        if not 0 <= count <= self._accepted:
            raise ValueError(f"count must lie in 0 to the {self._accepted} tokens accepted, got {count}")
        # An end token that closed the output never reached the matcher.
        within = count - 1 if self._ended and count else count
        if within and not self.matcher.rollback(within):
            raise ValueError(f"the grammar cannot go back: {self.error}")
        self._accepted -= count
        self._ended = self._ended and not count

    def copy(self) -> GrammarState:
        """A state at the same place that goes on by itself."""
        state = GrammarState(self.matcher.deep_copy(), end_ids=self._end_ids, vocab_size=self._vocab_size)
        state._accepted, state._ended = self._accepted, self._ended
        return state
