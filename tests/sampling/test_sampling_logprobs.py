"""Log-probabilities, ranks and top tokens against numpy's log-softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_steps import request, run

from realm_jax.sampling import SamplingParams, plan_for, token_logprobs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize(("vocab", "scale"), [(3, 1), (100, 5), (5000, 0.01), (50_257, 3)])
def test_they_are_those_of_log_softmax(vocab: int, scale: float) -> None:
    rng = np.random.default_rng(vocab)
    logits = (rng.normal(size=(4, vocab)) * scale + 10).astype(np.float32)
    logits[1] = np.round(logits[1])
    tokens = rng.integers(0, vocab, 4)
    got = jax.jit(token_logprobs, static_argnums=2)(jnp.asarray(logits), jnp.asarray(tokens), 5)
    expected = log_softmax(logits)
    order = np.argsort(-logits, -1, kind="stable")
    # One rounding of the normaliser, one of the difference, each of numbers up to 32: 2 * 2**-20.
    np.testing.assert_allclose(got.logprobs, expected[np.arange(4), tokens], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(got.top_ids, order[:, :5])
    np.testing.assert_allclose(got.top_logprobs, np.take_along_axis(expected, order[:, :5], -1), rtol=0, atol=2e-6)
    ranks = [int(np.flatnonzero(order[row] == tokens[row])[0]) + 1 for row in range(4)]
    assert got.rank.tolist() == ranks


def test_they_describe_the_logits_before_any_change() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 60)).astype(np.float32)
    params = SamplingParams(temperature=0.1, logit_bias={3: 100.0}, logprobs=2)
    got = run(logits, [request(params)], plan_for([params]))
    assert got.tokens.tolist() == [3]
    assert got.logprobs is not None and got.rank is not None and got.top_ids is not None
    assert float(got.logprobs[0]) == pytest.approx(log_softmax(logits)[0, 3], abs=1e-6)
    assert int(got.rank[0]) == 1 + int(np.sum(logits[0] > logits[0, 3]))
    assert got.top_ids.shape == (1, 5)


def test_greedy_tokens_have_rank_one() -> None:
    logits = np.zeros((2, 300), np.float32)
    logits[1, [7, 200]] = 2
    params = SamplingParams(temperature=0, logprobs=0)
    got = run(logits, [request(params)] * 2, plan_for([params]))
    assert (got.tokens.tolist(), got.rank.tolist()) == ([0, 7], [1, 1])  # pyright: ignore
    assert got.top_ids.shape == got.top_logprobs.shape == (2, 0)  # pyright: ignore


def test_half_precision_logits_are_taken_as_they_are() -> None:
    logits = np.random.default_rng(1).normal(size=(1, 128)).astype(np.float32) * 4
    half = jnp.asarray(logits, jnp.bfloat16)
    params = SamplingParams(temperature=0, logprobs=5)
    got = run(half, [request(params)], plan_for([params]))  # pyright: ignore
    expected = run(np.asarray(half, np.float32), [request(params)], plan_for([params]))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_nothing_is_reported_unless_asked_for() -> None:
    got = run(np.zeros((1, 9), np.float32), [request(SamplingParams(temperature=0))], plan_for([]))
    assert (got.logprobs, got.top_ids, got.top_logprobs, got.rank) == (None, None, None, None)
