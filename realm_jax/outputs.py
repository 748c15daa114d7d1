"""What generation returns, under vLLM's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logprob:
    """A token's log-probability (natural log), its rank from 1, and its text."""

    logprob: float
    rank: int | None
    decoded_token: str | None


LogprobsByToken = dict[int, Logprob]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestMetrics:
    """Seconds on the monotonic clock; what has not happened yet is None."""

    arrival_time: float
    first_token_time: float | None
    finished_time: float | None


@dataclasses.dataclass(kw_only=True, eq=False)
class Transcript:
    """What a sample has written, token by token; it only grows.

    Attributes:
        token_ids: its tokens, behind those of the prompt.
        prompt_length: how many of `token_ids` are the prompt's.
        texts: what each token added to the text.
        logprobs: of each token, None where they were not asked for.
    """

    token_ids: Sequence[int]
    prompt_length: int
    texts: list[str] = dataclasses.field(default_factory=list)
    logprobs: list[LogprobsByToken] | None = None
    _beginning: tuple[int, str] = dataclasses.field(default=(0, ""), init=False, repr=False)

    def text(self, start: int, stop: int) -> str:
        """The text that the tokens from `start` to `stop` added."""
        count, beginning = self._beginning  # as it was read last: who reads all of it again and again joins what is new
        if start or stop < count:
            return "".join(self.texts[start:stop])
        text = beginning + "".join(self.texts[count:stop])
        self._beginning = stop, text
        return text


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class CompletionOutput:
    """One sample, or the part of it from its token `start` to `stop`; it takes nothing to make, however long it is.

    Attributes:
        index: the sample's number within its request.
        transcript: what it is a part of.
        start: of its tokens the first that is told of.
        stop: one beyond the last.
        finish_reason: "stop", "length", "abort", "error" or None while the sample goes on.
        stop_reason: the stop string or stop token id that ended it, None for an end token of the model, or what went
            wrong.
    """

    index: int
    transcript: Transcript
    start: int
    stop: int
    finish_reason: str | None
    stop_reason: int | str | None

    @cached_property
    def text(self) -> str:
        """The text that the tokens added."""
        return self.transcript.text(self.start, self.stop)

    @cached_property
    def token_ids(self) -> list[int]:
        """The tokens."""
        first = self.transcript.prompt_length
        return list(self.transcript.token_ids[first + self.start : first + self.stop])

    @cached_property
    def logprobs(self) -> list[LogprobsByToken] | None:
        """The tokens' log-probabilities and those of the most probable ones, where they were asked for."""
        tables = self.transcript.logprobs
        return None if tables is None else tables[self.start : self.stop]

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the tokens' log-probabilities, where they were asked for."""
        if self.logprobs is None:
            return None
        return sum(table[token].logprob for token, table in zip(self.token_ids, self.logprobs, strict=True))

    def __repr__(self) -> str:
        names = ("index", "text", "token_ids", "logprobs", "finish_reason", "stop_reason")
        return f"CompletionOutput({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A request with its samples, so far or since the last output: see `RequestOutputKind`.

    `prompt_logprobs[0]` is None: nothing precedes the first token.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsByToken | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics

    def joined(self, earlier: Self) -> Self:
        """What this output tells and an earlier one that it follows, in one."""
        pairs = zip(self.outputs, earlier.outputs, strict=True)
        return dataclasses.replace(self, outputs=[dataclasses.replace(new, start=old.start) for new, old in pairs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOutput:
    """How probable a continuation is after its prompt.

    Attributes:
        logprob: the natural logarithm of its probability: the sum of `token_logprobs`.
        is_greedy: whether greedy decoding would have written it: every token has rank 1.
        token_ids: the continuation.
        token_logprobs: of each of its tokens, given all before it.
        ranks: of each of its tokens, from 1.
        num_prompt_tokens: the prompt's, as far as the model saw them; `num_dropped_tokens` before them did not fit.
    """

    logprob: float
    is_greedy: bool
    token_ids: list[int]
    token_logprobs: list[float]
    ranks: list[int]
    num_prompt_tokens: int
    num_dropped_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityOutput:
    """How well a text is predicted: `perplexity = exp(-logprob / num_tokens)`.

    Attributes:
        perplexity: the inverse of the geometric mean of the tokens' probabilities.
        logprob: the sum of the natural logarithms of the tokens' probabilities.
        num_tokens: tokens that were predicted; the first of a text, which nothing precedes, is not.
        token_logprobs: of each of them, in order of the text.
    """

    perplexity: float
    logprob: float
    num_tokens: int
    token_logprobs: list[float]
