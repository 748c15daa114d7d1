"""StopChecker: when one request ends and how much of its text may be shown, by vLLM's rules."""

from __future__ import annotations

import enum
from typing import NamedTuple

from realm_jax.sampling.params import SamplingParams


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """An end token, a stop token, a stop string, or a grammar that is complete."""
    LENGTH = "length"
    """The limit on tokens."""


class StopResult(NamedTuple):
    """What one token adds.

    Attributes:
        text: the text to show now; it is final.
        finish_reason: None while the request goes on.
        stop_reason: the stop string or stop token id that ended the request, None for the model's own end tokens.
    """

    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class _Match(NamedTuple):
    start: int
    end: int
    text: str


class StopChecker:
    """Watches the tokens of one sequence.

    A stop string is found wherever token borders fall. Of several, the one that is complete first ends the request,
    the first in the list among those complete at the same character. Text that may still become a stop string is held
    back until that is settled, so that a stream never shows the beginning of one; if stop strings are to be part of
    the text there is nothing to hold back.

    Neither tokens nor strings end the request within its first `min_tokens` tokens; a stop string may begin there.
    """

    def __init__(
        self, params: SamplingParams, *, end_ids: frozenset[int] = frozenset(), max_tokens: int | None = None
    ) -> None:
        """Watch for what `params` asks.

        Args:
            params: the stop conditions.
            end_ids: the model's end-of-generation tokens.
            max_tokens: a lower limit than `params.max_tokens`, such as the room left in the context.
        """
        self._min_tokens = params.min_tokens
        self._stops = params.stop_strings
        self._includes_stop = params.include_stop_str_in_output
        self._end_ids = frozenset() if params.ignore_eos else end_ids
        self._stop_ids = frozenset(params.stop_token_ids or ())
        limits = [limit for limit in (params.max_tokens, max_tokens) if limit is not None]
        self._max_tokens = min(limits, default=None)
        self._count = 0
        self._longest = max((len(stop) for stop in self._stops), default=1)
        # The end of the text, as far as a stop string may begin in it, and how much of that has been shown.
        self._recent = ""
        self._shown = 0
        self._finished = False

    def push(self, token_id: int, text_delta: str, *, complete: bool = False) -> StopResult:
        """Take the next token and the text it adds.

        `complete` ends the request with it, `min_tokens` or not: its grammar allows nothing more.

        Raises:
            RuntimeError: the request has ended.
        """
        if self._finished:
            raise RuntimeError("push must not follow the end of a request, got another token; make a new StopChecker")
        self._count += 1
        active = self._count > self._min_tokens
        text = self._recent + text_delta
        if active and (token_id in self._end_ids or token_id in self._stop_ids):
            reason = None if token_id in self._end_ids else token_id
            return self._finish(text if self._includes_stop else self._recent, FinishReason.STOP, reason)
        match = self._first_match(text) if active and self._stops else None
        if match is not None:
            shown = text[: match.end if self._includes_stop else match.start]
            return self._finish(shown, FinishReason.STOP, match.text)
        if complete:
            return self._finish(text, FinishReason.STOP, None)
        if self._max_tokens is not None and self._count >= self._max_tokens:
            return self._finish(text, FinishReason.LENGTH, None)
        return StopResult(self._show(text) if self._stops else text, None, None)

    def _finish(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> StopResult:
        self._finished = True
        return StopResult(text[self._shown :], reason, stop_reason)

    def _show(self, text: str) -> str:
        """Show all of the text but a beginning of a stop string, and keep what later tokens may make one of."""
        end = len(text) - self._held_length(text)
        start = max(0, len(text) - self._longest + 1)
        shown = text[self._shown : end]
        self._recent, self._shown = text[start:], end - start
        return shown

    def _first_match(self, text: str) -> _Match | None:
        """The stop string that ends first, among those that end in what the last token added."""
        matches = []
        for stop in self._stops:
            start = text.find(stop, max(0, len(self._recent) + 1 - len(stop)))
            if start >= 0:
                matches.append(_Match(start, start + len(stop), stop))
        return min(matches, key=lambda match: match.end, default=None)

    def _held_length(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop string without completing it."""
        if self._includes_stop:
            return 0
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
