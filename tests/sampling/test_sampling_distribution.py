"""Frequencies of drawn tokens against the probabilities of the plain sampler, on vocabularies small and real."""

import numpy as np
import pytest
from sampling_oracle import distribution
from sampling_steps import in_full, request, run
from scipy.stats import chi2

from realm_jax.sampling import SamplingParams, SamplingPlan, plan_for

# A correct sampler fails a test with this probability, once and for all since the seeds are fixed. A wrong one whose
# probabilities are off by a tenth in bins of a tenth has, at 4,000 draws, a statistic about 40 above its mean.
FALSE_ALARM = 1e-5


def drawn(logits: np.ndarray, params: SamplingParams, plan: SamplingPlan, count: int, batch: int) -> np.ndarray:
    """Draw `count` tokens from one row of logits, with all different seeds and steps."""
    rows = np.tile(logits, (batch, 1))
    steps = [
        run(rows, [request(params, seed=seed, output=[0] * step) for seed in range(batch)], plan).tokens
        for step in range(count // batch)
    ]
    return np.concatenate(steps)


def bins(probabilities: np.ndarray, largest: int = 12, groups: int = 12) -> np.ndarray:
    """Number a bin for each token: the most probable ones alone, the others in groups by id."""
    numbers = largest + np.arange(len(probabilities)) % groups
    numbers[np.argsort(-probabilities, kind="stable")[:largest]] = np.arange(largest)
    return numbers


def check(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Compare by chi-square; bins of fewer than 5 expected draws are put together."""
    assert not np.any(probabilities[tokens] == 0), "a token was drawn that the filters drop"
    numbers = bins(probabilities)
    expected = np.bincount(numbers, probabilities) * len(tokens)
    observed = np.bincount(numbers[tokens], minlength=len(expected)).astype(float)
    few = expected < 5
    expected = np.append(expected[~few], expected[few].sum())
    observed = np.append(observed[~few], observed[few].sum())
    held = expected > 0
    statistic = np.sum((observed[held] - expected[held]) ** 2 / expected[held])
    assert statistic < chi2.ppf(1 - FALSE_ALARM, max(held.sum() - 1, 1))


FILTERS = [
    SamplingParams(temperature=1.3),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=9),
    SamplingParams(top_p=0.7),
    SamplingParams(typical_p=0.6),
    SamplingParams(top_k=12, top_p=0.8, min_p=0.02, temperature=0.9),
]


@pytest.mark.parametrize("params", FILTERS, ids=lambda params: str(FILTERS.index(params)))
@pytest.mark.parametrize("full", [False, True])
def test_a_small_vocabulary(params: SamplingParams, full: bool) -> None:
    logits = np.random.default_rng(5).normal(size=40).astype(np.float32) * 1.5
    plan = plan_for(FILTERS)
    tokens = drawn(logits, params, in_full(plan) if full else plan, 4096, batch=512)
    check(tokens, distribution(logits, params).over(40))


def real_logits(kind: str) -> np.ndarray:
    """Return logits over 50,000 tokens: a few leaders above a long tail, or nothing but the tail."""
    logits = np.random.default_rng(6).normal(size=50_000).astype(np.float32)
    if kind == "peaked":
        logits[np.arange(60) * 800] += np.linspace(12, 4, 60, dtype=np.float32)
    return logits


@pytest.mark.parametrize(
    ("kind", "params", "count"),
    [
        ("peaked", SamplingParams(), 4096),
        ("flat", SamplingParams(temperature=0.8), 4096),
        ("flat", SamplingParams(min_p=0.3), 4096),
        ("peaked", SamplingParams(top_p=0.97), 1024),
        ("peaked", SamplingParams(top_k=40, top_p=0.9), 4096),
        # Every draw of this one is beyond the candidates.
        ("flat", SamplingParams(top_p=0.9), 256),
    ],
)
def test_a_real_vocabulary(kind: str, params: SamplingParams, count: int) -> None:
    logits = real_logits(kind)
    tokens = drawn(logits, params, plan_for([params]), count, batch=32)
    check(tokens, distribution(logits, params).over(len(logits)))
