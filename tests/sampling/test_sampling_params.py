"""SamplingParams: vLLM's names and defaults, other spellings, and what is refused."""

import dataclasses
import importlib.util
import math
import sys
from typing import Any

import pytest

import realm_jax.sampling.params


def as_in_production() -> Any:
    """Load the module anew, without the type checks of the tests, which would refuse a wrong type before it does."""
    spec = importlib.util.spec_from_file_location("unchecked_params", realm_jax.sampling.params.__file__)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


module = as_in_production()
SamplingParams = module.SamplingParams


def test_defaults_are_those_of_vllm() -> None:
    assert dataclasses.asdict(SamplingParams()) == {
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "seed": None,
        "stop": None,
        "stop_token_ids": None,
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "skip_special_tokens": True,
        "logits_processors": (),
        "structured_outputs": None,
        "output_kind": module.RequestOutputKind.CUMULATIVE,
    }


def test_other_spellings_become_one() -> None:
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=None) == SamplingParams()
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(stop="a").stop_strings == SamplingParams(stop=["a"]).stop_strings == ("a",)
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop_token_ids=[1]).stop_token_ids == (1,)


def test_params_are_hashable_and_frozen() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, stop=["a"], stop_token_ids=[3])
    assert {params: 1}[dataclasses.replace(params)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_greedy_is_a_temperature_near_zero() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=9e-6).greedy
    assert not SamplingParams(temperature=1e-5).greedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 1.5},
        {"n": True},
        {"n": 2, "temperature": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"typical_p": 0},
        {"top_k": -2},
        {"top_k": 1.0},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {1: math.nan}},
        {"seed": -2},
        {"seed": 2**64},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [1]},
        {"stop_token_ids": [-1]},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 17},
        {"logprobs": -1},
        {"prompt_logprobs": -1},
        {"logits_processors": [3]},
    ],
    ids=str,
)
def test_a_broken_rule_names_the_field_and_the_value(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^{name} must be .+, got .+; .+"):
        SamplingParams(**wrong)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


def test_the_edges_of_each_range_are_allowed() -> None:
    SamplingParams(top_p=1e-9, typical_p=1e-9, min_p=1, top_k=1, seed=2**64 - 1, max_tokens=None, min_tokens=10**6)
    SamplingParams(presence_penalty=-2, frequency_penalty=2, repetition_penalty=0.1, logit_bias={0: -math.inf})
    SamplingParams(logprobs=0, prompt_logprobs=0, n=3, temperature=1e-5)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    SamplingParams(logit_bias={9: 1.0}, stop_token_ids=[9]).check_vocabulary(10)
    with pytest.raises(ValueError, match="logit_bias must name tokens below the vocabulary size 9, got 9; remove it"):
        SamplingParams(logit_bias={9: 1.0}).check_vocabulary(9)
    with pytest.raises(ValueError, match="stop_token_ids"):
        SamplingParams(stop_token_ids=[9]).check_vocabulary(9)
