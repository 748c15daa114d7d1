"""Bias, bans, callers' functions and penalties against the plain sampler, on greedy requests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracle import processed
from sampling_steps import request, run

from realm_jax.sampling import SamplingParams, TokenHistory, pack, plan_for
from realm_jax.sampling.processors import process

VOCAB = 50
END_IDS = frozenset({4, 9})
PROMPT, OUTPUT = [1, 2, 2, 3], [3, 7, 7, 7, 9]


def last_token(history: TokenHistory, logits: jax.Array) -> jax.Array:
    """Forbid the token that was generated last."""
    last = jnp.where(history.length > history.prompt_length, history.tokens[history.length - 1], logits.shape[-1])
    return logits.at[last].set(-jnp.inf, mode="drop")


def count_outputs(history: TokenHistory, logits: jax.Array) -> jax.Array:
    """Add the number of generated tokens to the logit of token 0, and that of all tokens to token 1."""
    return logits.at[0].add(history.in_output.sum()).at[1].add(history.present.sum())


def double(history: TokenHistory, logits: jax.Array) -> jax.Array:
    return logits * 2


CASES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.25},
    {"frequency_penalty": -0.5, "presence_penalty": -1, "repetition_penalty": 1.1},
    {"logit_bias": {0: 5.0, 3: -2.5, 49: 0.5}},
    {"logit_bias": {3: 9.0, 7: -np.inf}, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"min_tokens": 6, "stop_token_ids": [11]},
    {"min_tokens": 5, "stop_token_ids": [11]},
    {"min_tokens": 16, "logit_bias": {4: 3.0, 5: 1.0}, "presence_penalty": 1},
]


def test_processed_logits_are_those_of_the_plain_sampler() -> None:
    params = [SamplingParams(temperature=0, **case) for case in CASES]
    logits = np.random.default_rng(0).normal(size=(len(CASES), VOCAB)).astype(np.float32) * 3
    plan = plan_for(params)
    batch = pack([request(p, prompt=PROMPT, output=OUTPUT, end_ids=END_IDS) for p in params], plan)
    got = jax.jit(process, static_argnums=2)(jnp.asarray(logits), batch, plan)
    for row, p in enumerate(params):
        expected = processed(logits[row], p, PROMPT, OUTPUT, END_IDS)
        # At most five roundings of numbers below 32: 5 * 32 * 2**-24 is below 1e-5.
        np.testing.assert_allclose(got[row], expected, rtol=0, atol=1e-5, err_msg=str(CASES[row]))


def test_a_request_without_changes_keeps_its_logits_bit_for_bit() -> None:
    params = [SamplingParams(temperature=0, **case) for case in CASES]
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(len(CASES), VOCAB)), jnp.float32)
    plan = plan_for(params)
    batch = pack([request(p, prompt=PROMPT, output=OUTPUT) for p in params], plan)
    np.testing.assert_array_equal(jax.jit(process, static_argnums=2)(logits, batch, plan)[0], logits[0])


def test_processors_run_in_order_for_their_own_requests_before_penalties() -> None:
    chains = [(), (count_outputs,), (count_outputs, double), (double, count_outputs), (last_token,), (double,)]
    penalties = [1.0, 1.0, 2.0, 1.0, 1.0, 2.0]
    params = [
        SamplingParams(temperature=0, logits_processors=chain, repetition_penalty=penalty)
        for chain, penalty in zip(chains, penalties, strict=True)
    ]
    plan = plan_for(params)
    batch = pack([request(p, prompt=PROMPT, output=OUTPUT) for p in params], plan)
    logits = jnp.ones((len(chains), VOCAB))
    got = np.asarray(jax.jit(process, static_argnums=2)(logits, batch, plan))
    # Token 0 was never seen, token 1 is in the prompt; 5 tokens were generated, 9 are there in all.
    assert got[:, :2].tolist() == [[1, 1], [6, 10], [12, 10], [7, 11], [1, 1], [2, 1]]
    assert np.isneginf(got[4]).nonzero()[0].tolist() == [OUTPUT[-1]]


def test_a_processor_that_changes_the_shape_is_named() -> None:
    def shorten(history: TokenHistory, logits: jax.Array) -> jax.Array:
        return logits[:-1]

    params = SamplingParams(temperature=0, logits_processors=[shorten])
    plan = plan_for([params])
    with pytest.raises(ValueError, match=r"must return logits of shape \(50,\), shorten returned \(49,\)"):
        run(np.ones((1, VOCAB), np.float32), [request(params)], plan)
