"""GrammarCompiler: grammars over one model's tokens, and the masks of many sequences at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from realm_jax.structured.library import error_of, llguidance
from realm_jax.structured.outputs import StructuredOutputs, shortened
from realm_jax.structured.state import WORD_BITS, GrammarState
from realm_jax.structured.vocabulary import GrammarVocabulary
from realm_jax.tokenizer import Tokenizer

_KEPT_GRAMMARS = 64


class GrammarCompiler:
    """Starts grammars over the tokens of one model; make one a model and share it. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, threads: int | None = None) -> None:
        """Build the library's tokenizer, which takes 0.1 to 1 s.

        Args:
            tokenizer: the model's.
            vocab_size: width of the model's logits, at least the tokenizer's size.
            threads: that masks are computed by; None is 80% of the CPUs, 32 at most.

        Raises:
            ValueError: the tokenizer has no end token, or more tokens than the model has logits.
            ImportError: llguidance is not installed.
        """
        self.vocab_size = vocab_size
        self._threads = threads
        vocabulary = GrammarVocabulary(tokenizer, vocab_size)
        self.end_ids = vocabulary.end_ids
        self.tokenizer = vocabulary.build()
        self._kept: OrderedDict[StructuredOutputs, Any] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, outputs: StructuredOutputs) -> GrammarState:
        """A sequence's state before its first output token; cheap for a constraint that was used before.

        Raises:
            ValueError: the grammar does not fit the model's tokens or the library's limits.
        """
        with self._lock:
            matcher = self._kept.pop(outputs, None)
        if matcher is None:
            library = llguidance()
            limits = library.LLParserLimits(verbose_errors=False)  # else errors print the tokens and the grammar
            matcher = library.LLMatcher(self.tokenizer, outputs.source(), log_level=0, limits=limits)
            if matcher.is_error():
                raise ValueError(
                    f"structured_outputs must be a constraint that this model's tokens can meet, got: "
                    f"{shortened(error_of(matcher))}"
                )
        # What is kept stays at the beginning, so that each sequence copies it instead of parsing the grammar again.
        state = GrammarState(matcher.deep_copy(), end_ids=self.end_ids, vocab_size=self.vocab_size)
        with self._lock:
            self._kept[outputs] = matcher
            while len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return state

    def new_mask(self, rows: int) -> np.ndarray:
        """int32[rows, ceil(vocab_size / 32)] that allows every token."""
        return np.full((rows, -(-self.vocab_size // WORD_BITS)), -1, np.int32)

    def fill(self, states: Sequence[GrammarState | None], mask: np.ndarray) -> None:
        """Fill a row for each state, side by side on several threads; a row without a state allows every token.

        Args:
            states: different ones, at most as many as the mask has rows.
            mask: int32[rows, ceil(vocab_size / 32)], C-ordered, as `new_mask` makes it.

        Raises:
            ValueError: the mask has another shape or type, or there are more states than rows.
        """
        words = -(-self.vocab_size // WORD_BITS)
        if mask.ndim != 2 or mask.shape[1] != words or mask.dtype != np.int32 or not mask.flags.c_contiguous:
            raise ValueError(f"mask must be int32[rows, {words}] in C order, got {mask.dtype}{list(mask.shape)}")
        if len(states) > len(mask):
            raise ValueError(f"mask must have a row for each of {len(states)} states, got {len(mask)}")
        running = []
        for row, state in enumerate(states):
            if state is None:
                mask[row] = -1
            elif state.finished:
                state.fill(mask[row])
            else:
                running.append((state.matcher, row))
        mask[len(states) :] = -1
        if running:
            self._executor.unsafe_compute_mask_ptr(running, mask.ctypes.data, words * mask.itemsize, len(mask))

    @cached_property
    def _executor(self) -> Any:
        return llguidance().LLExecutor(self._threads)
