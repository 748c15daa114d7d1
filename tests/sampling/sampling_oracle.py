"""A plain float64 sampler, written from the definitions, for one request at a time."""

import dataclasses
from collections import Counter

import numpy as np

from realm_jax.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Tokens in the order their inverse CDF runs, with their probabilities."""

    tokens: np.ndarray
    probabilities: np.ndarray

    def over(self, vocab: int) -> np.ndarray:
        """Return the probability of each token id."""
        dense = np.zeros(vocab)
        dense[self.tokens] = self.probabilities
        return dense

    def in_tree_order(self, vocab: int) -> "Distribution":
        """Reorder a vocabulary of at most 4,096 tokens as a draw without rank filters does: 64 interleaved runs."""
        assert vocab <= 64 * 64
        groups = -(-vocab // 64)
        order = np.lexsort((self.tokens // groups, self.tokens % groups))
        return Distribution(self.tokens[order], self.probabilities[order])

    def draw(self, uniform: float) -> tuple[int, float]:
        """Return the token at a uniform number, and how far that number is from the borders of its share."""
        ends = np.cumsum(self.probabilities)
        index = min(int(np.sum(ends <= uniform)), len(ends) - 1)
        start = ends[index] - self.probabilities[index]
        return int(self.tokens[index]), float(min(uniform - start, ends[index] - uniform))


def processed(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int], end_ids: frozenset[int]
) -> np.ndarray:
    """Apply bans, bias and penalties, one token at a time."""
    changed = logits.astype(np.float64)
    for token, value in (params.logit_bias or {}).items():
        changed[token] += value
    if len(output) < params.min_tokens:
        for token in end_ids | set(params.stop_token_ids or ()):
            changed[token] = -np.inf
    counts = Counter(output)
    for token in set(prompt) | set(output):
        value = changed[token]
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * counts[token]
        changed[token] = value - (params.presence_penalty if counts[token] else 0)
    return changed


def distribution(logits: np.ndarray, params: SamplingParams) -> Distribution:
    """Filter processed logits in vLLM's order: temperature, min_p, typical_p, top_k, top_p."""
    scaled = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    p = np.exp(scaled[order] - scaled.max())
    keep = p >= params.min_p
    order, p = order[keep], p[keep] / p[keep].sum()
    if params.typical_p < 1:
        order, p = _typical(order, p, params.typical_p)
    if params.top_k:
        order, p = order[: params.top_k], p[: params.top_k]
        p = p / p.sum()
    if params.top_p < 1:
        count = int(np.argmax(np.cumsum(p) >= params.top_p * (1 - 1e-12))) + 1
        order, p = order[:count], p[:count] / p[:count].sum()
    return Distribution(order, p)


def _typical(order: np.ndarray, p: np.ndarray, mass: float) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = np.nansum(p * surprise)
    nearness = np.abs(surprise - entropy)
    by_nearness = np.lexsort((order, nearness))
    count = int(np.argmax(np.cumsum(p[by_nearness]) >= mass * (1 - 1e-12))) + 1
    kept = np.sort(by_nearness[:count])
    return order[kept], p[kept] / p[kept].sum()
