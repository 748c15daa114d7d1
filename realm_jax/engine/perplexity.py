"""Perplexity of a text of any length, by windows that slide over it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

from realm_jax.engine.likelihood import Pair
from realm_jax.outputs import PerplexityOutput, ScoreOutput


def sliding_windows(token_ids: SequenceOf[int], *, max_length: int, stride: int) -> Iterator[Pair]:
    """Windows of at most `max_length` tokens that begin `stride` apart; each predicts what the one before did not.

    After https://huggingface.co/docs/transformers/perplexity. The first token of the text is not predicted, and with
    `stride = max_length` the first of each window, which then has no context.
    """
    if not 1 <= stride <= max_length or max_length < 2:
        raise ValueError(
            f"stride must lie in [1, max_length] and max_length be at least 2, got stride = {stride} and max_length = "
            f"{max_length}"
        )
    if len(token_ids) < 2:
        raise ValueError(f"perplexity needs a text of at least 2 tokens, got {len(token_ids)}")
    before = 0
    for begin in range(0, len(token_ids), stride):
        end = min(begin + max_length, len(token_ids))
        first = max(before, begin + 1)
        if first < end:
            yield Pair(context=list(token_ids[begin:first]), continuation=list(token_ids[first:end]))
        if end == len(token_ids):
            return
        before = end


def perplexity_of(scores: SequenceOf[ScoreOutput]) -> PerplexityOutput:
    """What the scores of a text's windows come to."""
    logprobs = [logprob for score in scores for logprob in score.token_logprobs]
    total = math.fsum(logprobs)
    return PerplexityOutput(
        perplexity=math.exp(-total / len(logprobs)), logprob=total, num_tokens=len(logprobs), token_logprobs=logprobs
    )
