"""What the harness asks of a generation becomes sampling parameters, or is refused; needs no harness."""

import pytest

from realm_jax.evals.generation import generation_request


def test_a_request_is_greedy_unless_sampling_is_asked_for() -> None:
    prompt, params = generation_request([1, 2, 3], {"until": "\n", "max_gen_toks": 5}, 100, 50)
    assert prompt == {"prompt_token_ids": [1, 2, 3]}
    assert params.greedy and params.max_tokens == 5 and params.stop_strings == ("\n",)
    assert generation_request([1], {"temperature": 0.7}, 100, 50)[1].temperature == 0.7
    assert generation_request([1], {"temperature": 0.7, "do_sample": False}, 100, 50)[1].greedy
    drawn = generation_request([1], {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": ["a", ""]}, 100, 50)[
        1
    ]
    assert (drawn.temperature, drawn.top_p, drawn.stop_strings, drawn.max_tokens) == (0.5, 0.9, ("a",), 50)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_a_long_context_keeps_its_end(name: str) -> None:
    prompt, params = generation_request(list(range(100)), {name: 30}, 100, 50)
    assert prompt == {"prompt_token_ids": list(range(30, 100))} and params.max_tokens == 30


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="max_gen_toks must be below max_length = 100, got 100"):
        generation_request([1], {"max_gen_toks": 100}, 100, 50)
    with pytest.raises(ValueError, match="gen_kwargs must be known to SamplingParams, got num_beams"):
        generation_request([1], {"num_beams": 4}, 100, 50)
