"""A cohort's arrays are those that are packed anew of its sequences, whatever lengths they have."""

from functools import partial

import jax
import numpy as np
import pytest

from realm_jax.engine.cohort import Cohort
from realm_jax.engine.request import RequestFactory
from realm_jax.engine.sequence import Sequence
from realm_jax.engine.steps import Limits
from realm_jax.sampling import SamplingParams, pack, plan_for

PARAMS = (
    SamplingParams(temperature=0, max_tokens=40),
    SamplingParams(temperature=0.7, top_p=0.9, top_k=20, seed=3, max_tokens=9, stop_token_ids=[5, 7]),
    SamplingParams(temperature=1.5, min_p=0.1, typical_p=0.8, logprobs=2, ignore_eos=True),
    SamplingParams(repetition_penalty=1.2, logit_bias={4: 1.0}, min_tokens=3, seed=5, max_tokens=30),
)


def sequences(count: int) -> list[Sequence]:
    factory = RequestFactory(None, vocab_size=100, max_model_len=200, seed=1)
    made = [factory.make({"prompt_token_ids": range(1 + i)}, PARAMS[i % len(PARAMS)]) for i in range(count)]
    return [request.sequences[0] for request in made]


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 4), (4, 4), (32, 32)])
def test_arrays_are_those_that_are_packed_anew(count: int, rows: int) -> None:
    together = sequences(count)
    plan, rng = plan_for([s.params for s in together]), np.random.default_rng(count)
    cohort = Cohort.of(together, plan, rows)
    for _ in range(20):
        lengths = np.array([rng.integers(s.num_tokens, s.longest + 1) for s in together], np.int32)
        for sequence, length in zip(together, lengths, strict=True):
            sequence.token_ids.extend(rng.integers(100, size=length - sequence.num_tokens).tolist())
        packed = pack([s.sampling for s in together], plan, size=rows, lengths=lengths.tolist())
        limits = Limits.of([min(6, s.longest - n) for s, n in zip(together, lengths, strict=True)], together, rows)
        made = (cohort.sampling(lengths, cohort.history(int(lengths.max()))), cohort.limits(lengths, 6))
        jax.tree.map(partial(np.testing.assert_array_equal, strict=True), made, (packed, limits))


def test_arrays_that_a_launch_was_given_stay_as_they_are() -> None:
    together = sequences(2)
    cohort = Cohort.of(together, plan_for([s.params for s in together]), 2)
    first = cohort.sampling(np.array([5, 6], np.int32))
    before = np.array(first.ints)
    cohort.sampling(np.array([7, 8], np.int32))
    np.testing.assert_array_equal(first.ints, before)


def test_a_cohort_is_of_these_sequences_in_this_order_under_this_plan() -> None:
    together = sequences(3)
    plan = plan_for([s.params for s in together])
    cohort = Cohort.of(together, plan, 4)
    assert cohort.is_of([*together], plan, 4)
    assert not cohort.is_of(together[::-1], plan, 4) and not cohort.is_of(together, plan, 3)
    assert not cohort.is_of(together[:2], plan, 4)
    assert not cohort.is_of(together, plan_for([together[0].params]), 4)
