"""Sequence: one sample of one request, from its prompt to its finish reason."""

from __future__ import annotations

import dataclasses
import time
from array import array
from functools import cached_property

import numpy as np

from realm_jax.engine.scheduler import Schedulable
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker
from realm_jax.structured import GrammarState
from realm_jax.tokenizer import StreamDetokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """What sampling reports of one token: its own log-probability and rank (from 1), and the top tokens'."""

    token: float
    rank: int
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionLogprobs:
    """Log-probabilities of the tokens that follow each position: `token float32[R]`, its `rank int32[R]` from 1,
    and the n most probable, `top_ids int32[R, n]` and `top float32[R, n]`."""

    token: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray

    @classmethod
    def concatenate(cls, parts: list[PositionLogprobs]) -> PositionLogprobs:
        """The parts of one prompt, in order, as one."""
        joined = (np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(cls))
        return cls(**dict(zip((f.name for f in dataclasses.fields(cls)), joined, strict=True)))


@dataclasses.dataclass(kw_only=True)
class Timings:
    """Moments in seconds of the monotonic clock; None until they come."""

    arrival: float = dataclasses.field(default_factory=time.monotonic)
    first_token: float | None = None
    finished: float | None = None


class Sequence(Schedulable):
    """Tokens, text and state of one sample. The engine owns its schedule and calls its methods in order.

    `max_tokens` 0 asks for nothing but the scores of its prompt, from position `score_from` on.
    `edit_id`: whose of the engine's edits concern it, 0 for those alone that concern all.
    """

    def __init__(
        self,
        *,
        sampling: SamplingRequest,
        max_tokens: int,
        stop: StopChecker,
        detokenizer: StreamDetokenizer | None,
        grammar: GrammarState | None = None,
        score_from: int | None = None,
        salt: bytes = b"",
        shares: tuple[Sequence, int] | None = None,
        edit_id: int = 0,
    ) -> None:
        tokens = sampling.token_ids
        if not isinstance(tokens, array):
            raise TypeError(f"token_ids must be an array that grows, got {type(tokens).__name__}; use token_array")
        super().__init__(
            token_ids=tokens,
            prompt_length=sampling.prompt_length,
            max_tokens=max_tokens,
            score_from=score_from,
            salt=salt,
            shares=shares,
        )
        self.sampling = sampling
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.scores: list[PositionLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.timings = Timings()
        self.grammar = grammar
        self.edit_id = edit_id
        self._stop = stop
        self._detokenizer = detokenizer

    @property
    def params(self) -> SamplingParams:
        """What the caller asked for."""
        return self.sampling.params

    @property
    def finished(self) -> bool:
        """Whether the sequence takes no more tokens."""
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """The text so far, without what may still become a stop string."""
        return "".join(self.texts)

    @property
    def output_token_ids(self) -> list[int]:
        """The generated tokens."""
        return list(self.token_ids[self.prompt_length :])

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens after which nothing follows."""
        ends = () if self.params.ignore_eos else self.sampling.end_ids
        return tuple(sorted({*ends, *(self.params.stop_token_ids or ())}))

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take the sampled token, and those that a grammar leaves no choice about where nothing is to be told of them.

        Finishes where a stop condition says so.
        """
        self._take(token, logprobs)
        if self.grammar is None or self.params.logprobs is not None:
            return
        for forced in [] if self.finished else self.grammar.forced_tokens():
            self._take(forced, None)
            if self.finished:
                return

    def _take(self, token: int, logprobs: TokenLogprobs | None) -> None:
        if self.timings.first_token is None:
            self.timings.first_token = time.monotonic()
        self.token_ids.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        delta = self._detokenizer.push(token) if self._detokenizer else ""
        complete = False
        if self.grammar is not None:
            accepted = self.grammar.accept(token)
            if not accepted or self.grammar.error is not None:
                self.finish("error", f"the grammar cannot go on: {self.grammar.error or 'no token is allowed'}")
                self.texts.append("")
                return
            complete = self.grammar.finished
        result = self._stop.push(token, delta, complete=complete)
        self.texts.append(result.text)
        if result.finish_reason is not None:
            self.finish(result.finish_reason.value, result.stop_reason)

    def finish(self, reason: str, stop_reason: int | str | None = None) -> None:
        """End with a finish reason: "stop", "length", "abort" or "error"."""
        self.finish_reason, self.stop_reason = reason, stop_reason
        self.timings.finished = time.monotonic()


def token_array(token_ids: list[int]) -> array[int]:
    """Token ids as the compact array that sequences grow."""
    return array("i", token_ids)
