"""A request's token depends on nothing but the request; compiled steps are few and hold only what they use."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_steps import in_full, request, run

import cpu_kernels
from realm_jax.sampling import (
    SampleOutput,
    SamplingBatch,
    SamplingParams,
    SamplingPlan,
    SamplingRequest,
    pack,
    plan_for,
    sample,
)

VOCAB = 700
BATCH = 8

settings_of_a_request = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.2, 0.7, 1.0, 3.0]),
        "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
        "top_k": st.sampled_from([0, 0, 1, 5, 64, 400]),
        "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.5]),
        "typical_p": st.sampled_from([1.0, 1.0, 1.0, 0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([None, {3: 4.0}]),
    }
)
requests_of_a_batch = st.lists(
    st.tuples(settings_of_a_request, st.integers(0, 2**64 - 1), st.integers(0, 9)), min_size=BATCH, max_size=BATCH
)
# All parts on, so that the examples share a few programs.
EVERYTHING = plan_for(
    [SamplingParams(top_k=5), SamplingParams(typical_p=0.5, frequency_penalty=1, logit_bias={1: 1.0}, logprobs=5)]
)


def logits_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.3, 2, 6], size=(BATCH, 1))
    x = (rng.normal(size=(BATCH, VOCAB)) * scale).astype(np.float32)
    return np.round(x, 1) if seed % 2 else x


@settings(max_examples=25)
@given(requests_of_a_batch, st.integers(0, 50), st.permutations(range(BATCH)))
def test_rows_do_not_depend_on_each_other_nor_on_the_mode(drafts: list, seed: int, order: list[int]) -> None:
    logits = logits_of(seed)
    requests = [
        request(SamplingParams(**options), seed=s, prompt=[1, 2], output=list(range(steps)))
        for options, s, steps in drafts
    ]
    together = run(logits, requests, EVERYTHING)
    shuffled = run(logits[order], [requests[i] for i in order], EVERYTHING)
    full = run(logits, requests, in_full(EVERYTHING))
    few = run(logits, requests, dataclasses.replace(EVERYTHING, candidates=4))
    for field, values in zip(SampleOutput._fields, together, strict=True):
        np.testing.assert_array_equal(getattr(shuffled, field), np.asarray(values)[order], err_msg=field)
        np.testing.assert_array_equal(getattr(full, field), values, err_msg=field)
        np.testing.assert_array_equal(getattr(few, field), values, err_msg=field)
    for row in range(BATCH):
        alone = run(logits[row : row + 1], requests[row : row + 1], EVERYTHING)
        for field, values in zip(SampleOutput._fields, together, strict=True):
            np.testing.assert_array_equal(getattr(alone, field)[0], np.asarray(values)[row], err_msg=field)


def test_a_request_keeps_its_token_in_any_plan_that_covers_it() -> None:
    logits = logits_of(3)
    for params in (
        SamplingParams(),
        SamplingParams(min_p=0.1),
        SamplingParams(top_p=0.8),
        SamplingParams(typical_p=0.4),
    ):
        requests = [request(params, seed=row) for row in range(BATCH)]
        own = run(logits, requests, plan_for([params])).tokens
        np.testing.assert_array_equal(own, run(logits, requests, EVERYTHING).tokens)


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
def test_the_implementation_changes_no_token() -> None:
    logits = logits_of(5)
    for params in (SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.8, logprobs=3)):
        requests = [request(params, seed=row) for row in range(BATCH)]
        reference, native = (run(logits, requests, plan_for([params]), name) for name in ("xla", "cpu"))
        for field, values in zip(SampleOutput._fields, reference, strict=True):
            np.testing.assert_array_equal(getattr(native, field), values, err_msg=field)


def test_padding_rows_change_nothing() -> None:
    params = SamplingParams(temperature=2, min_p=0.1)
    requests = [request(params, seed=row) for row in range(3)]
    logits = logits_of(4)
    padded = run(logits, requests, plan_for([params])).tokens
    np.testing.assert_array_equal(padded[:3], run(logits[:3], requests, plan_for([params])).tokens)
    np.testing.assert_array_equal(padded[3:], logits[3:].argmax(-1))


def test_a_steady_decode_compiles_once() -> None:
    traces = []

    def traced(logits: jax.Array, batch: SamplingBatch, plan: SamplingPlan) -> SampleOutput:
        traces.append(logits.shape)
        return sample(logits, batch, plan)

    step = jax.jit(traced, static_argnums=2)
    params = [SamplingParams(min_p=0.01 * row, frequency_penalty=0.1, min_tokens=row) for row in range(BATCH)]
    histories = [[1] * row for row in range(BATCH)]
    requests = [
        SamplingRequest(params=p, seed=row, prompt_length=row, token_ids=histories[row], end_ids=frozenset({9}))
        for row, p in enumerate(params)
    ]
    for number in range(20):
        plan = plan_for(params)
        tokens = step(jnp.asarray(logits_of(number)), pack(requests, plan), plan).tokens
        for history, token in zip(histories, tokens.tolist(), strict=True):
            history.append(token)
    assert traces == [(BATCH, VOCAB)]


def operations(params: SamplingParams) -> set[str]:
    """Name the operations of the program for one request and 70,000 tokens."""
    plan = plan_for([params])
    text = (
        jax.jit(sample, static_argnums=2).lower(jnp.zeros((1, 70_000)), pack([request(params)], plan), plan).as_text()
    )
    return set(re.findall(r"(?:stablehlo|chlo)\.(\w+)", text)) | set(re.findall(r"threefry2x32", text))


def test_a_program_holds_only_what_its_plan_uses() -> None:
    drawing = {"exponential", "threefry2x32"}
    ranking = {"top_k", "sort", "while"}
    assert not (drawing | ranking | {"scatter", "log"}) & operations(SamplingParams(temperature=0, top_p=0.5))
    assert drawing <= operations(SamplingParams(min_p=0.1))
    assert not {"top_k", "sort", "scatter", "log"} & operations(SamplingParams(min_p=0.1))
    assert drawing | ranking <= operations(SamplingParams(top_p=0.5))
    assert "scatter" in operations(SamplingParams(temperature=0, logit_bias={1: 1.0}))
    assert "log" in operations(SamplingParams(temperature=0, logprobs=0))


def test_a_batch_packed_for_another_plan_is_refused() -> None:
    params = SamplingParams(temperature=0)
    batch = pack([request(params)], SamplingPlan())
    with pytest.raises(ValueError, match="batch must have history exactly if the plan needs it, got False"):
        sample(jnp.zeros((1, 8)), batch, SamplingPlan(penalties=True))
    with pytest.raises(ValueError, match="batch must have a row for each row of logits, got 1 for 2"):
        sample(jnp.zeros((2, 8)), batch, SamplingPlan())
