"""Drawn tokens are those of the plain sampler at the same uniform number, in every mode."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracle import Distribution, distribution
from sampling_steps import in_full, request, run, uniform

from realm_jax.sampling import SamplingParams, SamplingPlan, plan_for
from realm_jax.sampling.draw import uniform_bits

VOCAB = 300
STEPS = 12
# A draw this close to the border between two tokens may fall on either side: probabilities are float32, with an
# exponential good to 2 ulp, and top_p or typical_p may keep one token more. Few of the draws are that close.
BORDER = 2e-6

CASES = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=2.5),
    SamplingParams(min_p=0.05),
    SamplingParams(min_p=1),
    SamplingParams(temperature=0.7, min_p=0.2, top_k=5),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_k=64),
    SamplingParams(top_k=65),
    SamplingParams(top_k=299),
    SamplingParams(top_k=100_000),
    SamplingParams(top_p=1e-6),
    SamplingParams(top_p=0.3),
    SamplingParams(top_p=0.9, temperature=1.5),
    SamplingParams(top_p=0.999),
    SamplingParams(top_p=0.8, top_k=20, temperature=0.6),
    SamplingParams(top_p=0.5, top_k=200, min_p=0.01),
    SamplingParams(typical_p=0.2),
    SamplingParams(typical_p=0.9, temperature=0.8),
    SamplingParams(typical_p=0.7, min_p=0.02),
    SamplingParams(typical_p=0.8, top_k=6, top_p=0.7),
]


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(len(kind))
    x = rng.normal(size=(len(CASES), VOCAB)).astype(np.float32)
    return {
        "moderate": lambda: x * 2,
        "flat": lambda: x / 10,
        "peaked": lambda: x * 8,
        "ties": lambda: np.round(x * 2),
        "masked": lambda: np.where(x < 0.5, -np.inf, x * 2).astype(np.float32),
    }[kind]()


KINDS = ["moderate", "flat", "peaked", "ties", "masked"]
WIDE = dataclasses.replace(plan_for(CASES), candidates=64)
PLANS = {"64": WIDE, "3": dataclasses.replace(WIDE, candidates=3), "full": in_full(WIDE)}


def tokens(kind: str, plan: SamplingPlan) -> np.ndarray:
    """Return the tokens of all cases, `[STEPS, cases]`."""
    logits = rows(kind)
    drawn = [
        run(logits, [request(p, seed=7 * row, output=[0] * step) for row, p in enumerate(CASES)], plan).tokens
        for step in range(STEPS)
    ]
    return np.stack(drawn)


def expected_distribution(logits: np.ndarray, params: SamplingParams) -> Distribution:
    ranked = params.top_k or params.top_p < 1 or params.typical_p < 1
    filtered = distribution(logits, params)
    return filtered if ranked else filtered.in_tree_order(VOCAB)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_plain_sampler(kind: str) -> None:
    got, logits, close = tokens(kind, WIDE), rows(kind), 0
    for row, params in enumerate(CASES):
        expected = expected_distribution(logits[row], params)
        for step in range(STEPS):
            token, distance = expected.draw(uniform(7 * row, step))
            close += distance < BORDER
            assert got[step, row] == token or distance < BORDER, (params, step, distance)
    assert close <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["3", "full"])
def test_the_plan_never_changes_a_token(kind: str, plan: str) -> None:
    np.testing.assert_array_equal(tokens(kind, PLANS[plan]), tokens(kind, WIDE))


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.zeros((len(CASES), VOCAB), np.float32)
    logits[0, [250, 40]] = 1
    logits[1, 5:] = -0.0
    logits[2, :7] = -np.inf
    requests = [request(SamplingParams(temperature=0, top_k=3, seed=row)) for row in range(3)]
    for plan in (plan_for([SamplingParams(temperature=0)]), WIDE, in_full(WIDE)):
        assert run(logits, requests, plan).tokens[:3].tolist() == [40, 0, 7]


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.5}], ids=str)
def test_extreme_logits_give_a_token(options: dict) -> None:
    params = SamplingParams(**options)
    logits = np.full((len(CASES), VOCAB), -np.inf, np.float32)
    logits[1, 9] = np.inf
    logits[2, :] = -3e38
    logits[2, 11] = 3e38
    logits[3, 13] = -1e30
    for plan in (WIDE, in_full(WIDE)):
        tokens = run(logits, [request(params, seed=row) for row in range(4)], plan).tokens
        assert tokens[:4].tolist() == [0, 9, 11, 13]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = rows("moderate")
    requests = [request(SamplingParams(temperature=1e-5, seed=row)) for row in range(len(CASES))]
    np.testing.assert_array_equal(run(logits, requests, WIDE).tokens, logits.argmax(-1))


def test_uniform_numbers_are_uniform_over_seeds_and_steps() -> None:
    count, bins = 4096, 16
    grid = jnp.arange(count, dtype=jnp.uint32)
    zeros = jnp.zeros_like(grid)
    for seeds, steps in ((grid, zeros), (zeros, grid)):
        bits = np.asarray(uniform_bits(jnp.stack([zeros, seeds], -1), steps))
        observed = np.bincount(bits >> 28, minlength=bins)
        # Chi-square with 15 degrees of freedom exceeds 55 with probability 2e-6; the keys are fixed.
        assert np.sum((observed - count / bins) ** 2 / (count / bins)) < 55
        assert len(np.unique(bits)) >= count - 2  # birthdays: 4096**2 / 2**33 collisions expected


def test_every_bit_of_a_seed_matters() -> None:
    seeds = [0, *(1 << bit for bit in range(64))]
    assert len({uniform(seed, 0) for seed in seeds}) == len(seeds)
    logits = np.zeros((len(seeds), VOCAB), np.float32)
    params = SamplingParams()
    drawn = run(logits, [request(params, seed=seed) for seed in seeds], plan_for([params])).tokens
    expected = [expected_distribution(logits[0], params).draw(uniform(seed, 0))[0] for seed in seeds]
    # Equal weights of 300 tokens have borders at multiples of 1 / 300; a draw within 2**-32 of one is not among these.
    assert drawn.tolist() == expected
