"""What generation returns, under vLLM's names."""

from __future__ import annotations

import dataclasses


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One sample. `finish_reason` is "stop", "length", "abort", "error" or None while it runs; `stop_reason` is the
    stop string or stop token id that ended it, None for an end token of the model, or what went wrong."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[LogprobsByToken] | None
    finish_reason: str | None
    stop_reason: int | str | None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the sampled tokens' log-probabilities, where they were asked for."""
        if self.logprobs is None:
            return None
        return sum(table[token].logprob for token, table in zip(self.token_ids, self.logprobs, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A request with its samples so far. `prompt_logprobs[0]` is None: nothing precedes the first token."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsByToken | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics


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
