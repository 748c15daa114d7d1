"""Sequence: one sample of one request, from its prompt to its finish reason."""

from __future__ import annotations

import dataclasses
import time
from array import array
from typing import Any

from realm_jax.engine.batch import SequenceSlice
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker
from realm_jax.tokenizer import StreamDetokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """What sampling reports of one token: its own log-probability and rank (from 1), and the top tokens'."""

    token: float
    rank: int
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


@dataclasses.dataclass(kw_only=True)
class Timings:
    """Moments in seconds of the monotonic clock; None until they come."""

    arrival: float = dataclasses.field(default_factory=time.monotonic)
    first_token: float | None = None
    finished: float | None = None


class Sequence:
    """Tokens, text and state of one sample. The engine owns its blocks and calls its methods in order."""

    def __init__(
        self,
        *,
        sampling: SamplingRequest,
        max_tokens: int,
        stop: StopChecker,
        detokenizer: StreamDetokenizer | None,
    ) -> None:
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.blocks: list[int] = []
        self.num_computed_tokens = 0
        self.text = ""
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.timings = Timings()
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
    def output_token_ids(self) -> list[int]:
        """The generated tokens."""
        return list(self.sampling.token_ids[self.sampling.prompt_length :])

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.sampling.token_ids)

    @property
    def longest(self) -> int:
        """Positions the sequence can come to hold in the cache."""
        return self.sampling.prompt_length + self.max_tokens

    @property
    def prefilling(self) -> bool:
        """Whether more than the newest token is still to be computed, or nothing was sampled yet."""
        return self.num_tokens - self.num_computed_tokens > 1 or not self.sampling.step

    def next_slice(self, limit: int) -> SequenceSlice:
        """The next tokens to compute, `limit` at most; logits are wanted where they end the sequence."""
        start = self.num_computed_tokens
        tokens = self.sampling.token_ids[start : start + limit]
        last = start + len(tokens) == self.num_tokens
        rows = (len(tokens) - 1,) if last else ()
        return SequenceSlice(tokens=tokens, start=start, block_table=self.blocks, rows=rows)

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take the sampled token: extend the text, and finish where a stop condition says so."""
        if self.timings.first_token is None:
            self.timings.first_token = time.monotonic()
        tokens: Any = self.sampling.token_ids
        tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        delta = self._detokenizer.push(token) if self._detokenizer else ""
        result = self._stop.push(token, delta)
        self.text += result.text
        self.finish_reason = None if result.finish_reason is None else result.finish_reason.value
        self.stop_reason = result.stop_reason
        if self.finished:
            self.timings.finished = time.monotonic()

    def abort(self) -> None:
        """Finish at the caller's wish."""
        self.finish_reason = "abort"
        self.timings.finished = time.monotonic()


def token_array(token_ids: list[int]) -> array[int]:
    """Token ids as the compact array that sequences grow."""
    return array("i", token_ids)
