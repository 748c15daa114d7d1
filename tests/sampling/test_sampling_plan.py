"""plan_for chooses the smallest plan, few plans exist, and pack holds requests to theirs."""

import array
import dataclasses

import jax
import numpy as np
import pytest
from sampling_steps import in_full, request

from realm_jax.sampling import (
    SamplingBatch,
    SamplingMode,
    SamplingParams,
    SamplingPlan,
    SamplingRequest,
    pack,
    plan_for,
)

GREEDY = SamplingParams(temperature=0)


@pytest.mark.parametrize(
    ("params", "mode", "candidates", "filters"),
    [
        ([GREEDY], SamplingMode.GREEDY, 0, False),
        ([SamplingParams(temperature=0, top_k=5, top_p=0.5)], SamplingMode.GREEDY, 0, False),
        ([SamplingParams()], SamplingMode.FULL, 0, False),
        ([SamplingParams(min_p=0.1), GREEDY], SamplingMode.FULL, 0, False),
        ([SamplingParams(typical_p=0.5, top_k=3)], SamplingMode.FULL, 0, True),
        ([SamplingParams(top_p=0.9), GREEDY], SamplingMode.CANDIDATES, 64, True),
        ([SamplingParams(top_k=64)], SamplingMode.CANDIDATES, 64, True),
        ([SamplingParams(top_k=65), SamplingParams()], SamplingMode.CANDIDATES, 256, True),
        ([SamplingParams(top_k=1000)], SamplingMode.CANDIDATES, 64, True),
    ],
)
def test_the_mode_follows_from_the_requests(
    params: list[SamplingParams], mode: SamplingMode, candidates: int, filters: bool
) -> None:
    plan = plan_for(params)
    assert (plan.mode, plan.candidates, plan.filters) == (mode, candidates, filters)


def test_a_plan_has_only_the_parts_that_are_used() -> None:
    def processor(history, logits):
        return logits

    assert plan_for([GREEDY]) == SamplingPlan()
    assert plan_for([GREEDY, SamplingParams(temperature=0, repetition_penalty=1.1)]).penalties
    assert plan_for([SamplingParams(temperature=0, logit_bias={1: 1.0})]).logit_bias
    assert plan_for([SamplingParams(temperature=0, min_tokens=1)]).logit_bias
    params = SamplingParams(temperature=0, logits_processors=[processor])
    assert plan_for([params, GREEDY, params]).processors == ((processor,),)


def test_counts_of_logprobs_are_rounded_up() -> None:
    counts = [plan_for([GREEDY, SamplingParams(logprobs=n)]).logprobs for n in (0, 1, 5, 6, 20, 21, 64, 65)]
    assert counts == [0, 5, 5, 20, 20, 32, 64, 128]


def test_plans_are_hashable_and_cover_smaller_ones() -> None:
    plans = [plan_for([SamplingParams(top_k=3, logprobs=3, logit_bias={1: 1.0})]), plan_for([GREEDY])]
    assert len({*plans, *(dataclasses.replace(plan) for plan in plans)}) == 2
    assert plans[0].covers(plans[1])
    assert not plans[1].covers(plans[0])
    assert in_full(plans[0]).covers(plans[0])


@pytest.mark.parametrize(
    "params", [{"top_k": 3}, {"logprobs": 1}, {"frequency_penalty": 1}, {"min_tokens": 1}], ids=str
)
def test_pack_refuses_a_plan_that_does_not_cover_a_request(params: dict) -> None:
    with pytest.raises(ValueError, match="plan must cover every request, got .*; make it with plan_for"):
        pack([request(SamplingParams(**params))], SamplingPlan(mode=SamplingMode.FULL))


def test_pack_refuses_too_many_requests() -> None:
    with pytest.raises(ValueError, match="size must be at least the number of requests and targets, 2, got 1"):
        pack([request(GREEDY)] * 2, SamplingPlan(), size=1)


def test_a_batch_has_two_leaves_unless_more_are_needed() -> None:
    greedy = pack([request(GREEDY)], SamplingPlan(), size=4)
    assert [leaf.shape for leaf in jax.tree.leaves(greedy)] == [(4, 5), (4, 9)]
    params = SamplingParams(frequency_penalty=0.5, logit_bias={3: 1.0})
    batch = pack([request(params, prompt=[7] * 300, output=[8])], plan_for([params]))
    assert [leaf.shape for leaf in jax.tree.leaves(batch)] == [(1, 5), (1, 9), (1, 512), *[(1, 8)] * 3]


def test_history_is_packed_only_for_requests_that_look_at_it() -> None:
    penalised = SamplingParams(temperature=0, presence_penalty=1)
    requests = [request(GREEDY, prompt=[5] * 1000), request(penalised, prompt=[1, 2], output=[3])]
    batch = pack(requests, plan_for([GREEDY, penalised]))
    assert batch.history.shape == (2, 256)
    assert batch.history[1, :4].tolist() == [1, 2, 3, 0]
    assert not batch.history[0].any()


def test_token_ids_may_be_an_array() -> None:
    params = SamplingParams(temperature=0, presence_penalty=1)
    tokens = array.array("i", [4, 5])
    live = SamplingRequest(params=params, seed=0, prompt_length=2, token_ids=tokens)
    tokens.append(6)
    assert live.step == 1
    np.testing.assert_array_equal(pack([live], plan_for([params])).history[0, :3], [4, 5, 6])


def test_bans_end_with_the_minimum_of_tokens_and_biases_never() -> None:
    params = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=[8], logit_bias={5: 2.0})
    plan = plan_for([params])
    end_ids = frozenset(range(20, 30))
    batch = pack([request(params, end_ids=end_ids)], plan)
    assert batch.bias_ids.shape == (1, 16) and batch.bias_ids[0, 0] == 5
    assert sorted(batch.bias_ids[0, 1:12]) == [8, *range(20, 30)]
    assert np.isneginf(batch.bias_values[0, 1:12]).all() and batch.bias_values[0, 0] == 2
    assert (batch.bias_until[0, 1:12] == 3).all() and batch.bias_until[0, 0] == 2**32 - 1
    # A request's numbers change with its tokens in nothing but their count.
    later = pack([request(params, end_ids=end_ids, output=[1, 1, 1])], plan)
    for name in ("bias_ids", "bias_values", "bias_until", "floats"):
        np.testing.assert_array_equal(getattr(later, name), getattr(batch, name))


def test_a_batch_goes_on_by_itself() -> None:
    params = [SamplingParams(seed=1), SamplingParams(presence_penalty=1, seed=2), SamplingParams(min_tokens=2)]
    plan, prompts = plan_for(params), ([5] * 250, [6] * 254, [7])
    grown: list[list[int]] = [[], [], []]
    batch = pack([request(p, prompt=ids) for p, ids in zip(params, prompts, strict=True)], plan, size=4)
    for step in range(4):
        tokens = [10 * step + row for row in range(4)]
        for output, token in zip(grown, tokens, strict=False):
            output.append(token)
        batch = jax.jit(SamplingBatch.after)(batch, np.array(tokens, np.int32))
        made = [request(p, prompt=ids, output=o) for p, ids, o in zip(params, prompts, grown, strict=True)]
        expected = pack(made, plan, size=4)
        np.testing.assert_array_equal(batch.ints[:3], expected.ints[:3])
        assert not batch.length[3] and not np.asarray(batch.history)[[0, 2, 3]].any()
        # The history has room for two tokens more; what comes then is left out.
        np.testing.assert_array_equal(batch.history[1], expected.history[1, :256])
