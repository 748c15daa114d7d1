"""StopChecker: when one request ends and how much of its text may be shown, by vLLM's rules."""

from __future__ import annotations

import enum
from typing import NamedTuple

from realm_jax.sampling.params import SamplingParams


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """An end token, a stop token or a stop string."""
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
        self._params = params
        self._end_ids = frozenset() if params.ignore_eos else end_ids
        self._stop_ids = frozenset(params.stop_token_ids or ())
        limits = [limit for limit in (params.max_tokens, max_tokens) if limit is not None]
        self._max_tokens = min(limits, default=None)
        self._count = 0
        self._held = ""
        self._finished = False

    def push(self, token_id: int, text_delta: str) -> StopResult:
        """Take the next token and the text it adds.

        Raises:
            RuntimeError: the request has ended.
        """
        if self._finished:
            raise RuntimeError("push must not follow the end of a request, got another token; make a new StopChecker")
        self._count += 1
        active = self._count > self._params.min_tokens
        if active and (token_id in self._end_ids or token_id in self._stop_ids):
            shown = text_delta if self._params.include_stop_str_in_output else ""
            return self._finish(self._held + shown, FinishReason.STOP, self._token_reason(token_id))
        text, searched = self._held + text_delta, len(self._held)
        match = self._first_match(text, searched) if active else None
        if match is not None:
            end = match.end if self._params.include_stop_str_in_output else match.start
            return self._finish(text[:end], FinishReason.STOP, match.text)
        if self._max_tokens is not None and self._count >= self._max_tokens:
            return self._finish(text, FinishReason.LENGTH, None)
        shown = len(text) - self._held_length(text)
        self._held = text[shown:]
        return StopResult(text[:shown], None, None)

    def _token_reason(self, token_id: int) -> int | None:
        return None if token_id in self._end_ids else token_id

    def _finish(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> StopResult:
        self._finished = True
        return StopResult(text, reason, stop_reason)

    def _first_match(self, text: str, searched: int) -> _Match | None:
        """The stop string that ends first, beyond the characters already searched."""
        matches = []
        for stop in self._params.stop_strings:
            start = text.find(stop, max(0, searched + 1 - len(stop)))
            if start >= 0:
                matches.append(_Match(start, start + len(stop), stop))
        return min(matches, key=lambda match: match.end, default=None)

    def _held_length(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop string without completing it."""
        if self._params.include_stop_str_in_output:
            return 0
        return max((_overlap(text, stop) for stop in self._params.stop_strings), default=0)


def _overlap(text: str, stop: str) -> int:
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
