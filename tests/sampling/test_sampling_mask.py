"""A mask rules out tokens for every way of drawing, and leaves the rows that have none as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_steps import request

from realm_jax.sampling import SamplingParams, pack, plan_for, sample
from realm_jax.sampling.mask import forbid
from realm_jax.structured import StructuredOutputs

ANY = StructuredOutputs(regex="(?s:.*)")
VOCABULARIES = (100, 1024)
WAYS = {
    "greedy": {"temperature": 0},
    "full": {},
    "min_p": {"min_p": 0.2},
    "candidates": {"top_k": 7, "top_p": 0.9},
    "typical": {"typical_p": 0.6},
    "penalised": {"repetition_penalty": 1.5, "frequency_penalty": 1.0},
    "biased": {"logit_bias": {3: 50.0, 5: -1.0}},
}
_step = jax.jit(sample, static_argnums=2)


def mask_of(allowed: np.ndarray) -> np.ndarray:
    """Pack bool[rows, vocab] into words, with every unused bit of the last word set."""
    spare = -allowed.shape[1] % 32
    bits = np.pad(allowed, [(0, 0), (0, spare)], constant_values=True)
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("way", WAYS)
def test_only_allowed_tokens_come(way, vocab) -> None:
    """As from logits that are -inf elsewhere, by a plan without a mask."""
    rng = np.random.default_rng(vocab)
    plain = SamplingParams(**WAYS[way])
    masked = dataclasses.replace(plain, structured_outputs=ANY)
    rows = 64
    logits = rng.normal(size=(rows, vocab)).astype(np.float32) * 4
    allowed = rng.random((rows, vocab)) < rng.random((rows, 1))
    allowed[np.arange(rows), rng.integers(vocab, size=rows)] = True
    histories = [{"seed": i, "prompt": [1, 2], "output": [4]} for i in range(rows)]
    requests = [request(masked, **history) for history in histories]
    plan = plan_for([masked])
    tokens = _step(jnp.asarray(logits), pack(requests, plan, mask=mask_of(allowed)), plan).tokens
    assert allowed[np.arange(rows), tokens].all()
    plan = plan_for([plain])
    requests = [request(plain, **history) for history in histories]
    expected = _step(jnp.where(allowed, logits, -jnp.inf), pack(requests, plan), plan).tokens
    np.testing.assert_array_equal(tokens, expected)


@settings(max_examples=40)
@given(data=st.data(), rows=st.integers(1, 3), vocab=st.integers(1, 130))
def test_every_bit_is_its_token(data, rows, vocab) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=rows * vocab, max_size=rows * vocab)))
    allowed = allowed.reshape(rows, vocab)
    logits = forbid(jnp.ones((rows, vocab)), jnp.asarray(mask_of(allowed)))
    np.testing.assert_array_equal(logits, np.where(allowed, 1, -np.inf))


def test_rows_without_a_mask_are_untouched() -> None:
    """The same tokens as without the masked request beside them, whether their rows are given or filled up."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(8, 100)).astype(np.float32))
    plain = SamplingParams(top_p=0.9)
    masked = dataclasses.replace(plain, structured_outputs=ANY)
    allowed = np.arange(100)[None] == 7
    requests = [request(masked), *(request(plain, seed=i) for i in range(7))]
    plan = plan_for([masked, plain])
    mixed = _step(logits, pack(requests, plan, mask=mask_of(allowed)), plan).tokens
    full = np.concatenate([mask_of(allowed), np.full((7, 4), -1, np.int32)])
    np.testing.assert_array_equal(mixed, _step(logits, pack(requests, plan, mask=full), plan).tokens)
    assert mixed[0] == 7
    alone = plan_for([plain])
    np.testing.assert_array_equal(mixed[1:], _step(logits[1:], pack(requests[1:], alone), alone).tokens)


def test_log_probabilities_are_those_among_allowed_tokens() -> None:
    logits = jnp.arange(100.0)[None] / 10
    params = SamplingParams(temperature=0, structured_outputs=ANY, logprobs=5)
    plan = plan_for([params])
    allowed = np.isin(np.arange(100), [3, 50, 60])[None]
    output = _step(logits, pack([request(params)], plan, mask=mask_of(allowed)), plan)
    among = jax.nn.log_softmax(jnp.array([6.0, 5.0, 0.3]))
    assert int(output.tokens[0]) == 60
    assert output.top_ids[0, :3].tolist() == [60, 50, 3]
    # Two float32 log-softmaxes of three numbers.
    np.testing.assert_allclose(output.top_logprobs[0, :3], among, atol=2e-6)
    assert np.isneginf(output.top_logprobs[0, 3:]).all()
    assert (int(output.rank[0]), float(output.logprobs[0])) == (1, float(output.top_logprobs[0, 0]))


def test_a_processor_cannot_bring_a_forbidden_token_back() -> None:
    def only_nine(history, logits):
        return jnp.where(jnp.arange(logits.shape[-1]) == 9, 5.0, logits)

    params = SamplingParams(temperature=0, structured_outputs=ANY, logits_processors=[only_nine])
    plan = plan_for([params])
    for token in (4, 9):
        allowed = np.arange(40)[None] == token
        batch = pack([request(params)], plan, mask=mask_of(allowed))
        assert int(_step(jnp.zeros((1, 40)), batch, plan).tokens[0]) == token


def test_the_mask_may_come_after_packing() -> None:
    """So that it is made while the model runs, and sampling is a program of its own."""
    params = SamplingParams(temperature=0, structured_outputs=ANY)
    plan = plan_for([params])
    batch = pack([request(params)], plan, size=4)
    assert batch.mask is None
    later = batch.with_mask(mask_of(np.arange(40)[None] == 11))
    assert later.mask.shape == (4, 2)
    assert _step(jnp.zeros((4, 40)), later, plan).tokens.tolist() == [11, 0, 0, 0]
    with pytest.raises(ValueError, match="batch must have mask exactly if the plan needs it, got False"):
        sample(jnp.zeros((4, 40)), batch, plan)


def test_plans_know_masks() -> None:
    plain, masked = SamplingParams(), SamplingParams(structured_outputs=ANY)
    assert plan_for([plain, masked]).masked
    assert not plan_for([plain]).masked
    assert plan_for([plain]).repeats
    assert not plan_for([masked]).repeats
    assert plan_for([masked]).covers(plan_for([plain]))
    assert not plan_for([plain]).covers(plan_for([masked]))


def test_masks_of_another_size_are_refused() -> None:
    params = SamplingParams(structured_outputs=ANY)
    plan = plan_for([params])
    mask = np.full((1, 2), -1, np.int32)
    with pytest.raises(ValueError, match=r"mask must be int32\[1, 3\] for these logits, got \[1, 2\]"):
        sample(jnp.zeros((1, 65)), pack([request(params)], plan, mask=mask), plan)
    with pytest.raises(ValueError, match="mask must have at most one row for each of the batch's 1, got 2"):
        pack([request(params)], plan, mask=np.full((2, 2), -1, np.int32))
    with pytest.raises(ValueError, match="mask must be given only for a masked plan"):
        pack([request(SamplingParams())], plan_for([SamplingParams()]), mask=mask)
