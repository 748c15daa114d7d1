"""What `LLM` refuses, each with the rule and the value."""

from typing import Any

import jax.numpy as jnp
import pytest

from realm_jax import LLM, SamplingParams


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ({"prompt_token_ids": [1] * 113}, "the prompt has 113 tokens, but max_model_len is 112"),
        ({"prompt_token_ids": [1] * 112}, "fills max_model_len = 112 and leaves no room for an output"),
        ({"prompt_token_ids": [5, 256]}, r"prompt_token_ids must lie in \[0, 256\), got 256"),
        ({"prompt_token_ids": [-1]}, r"prompt_token_ids must lie in \[0, 256\), got -1"),
        ("half a pair: \ud83d", "text must be valid Unicode"),
    ],
)
def test_prompts_that_do_not_fit_the_model(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(["fine", prompt], use_tqdm=False)


@pytest.mark.parametrize("prompt", [7, {"text": "hello"}, {"prompt_token_ids": [1.5]}, None])
def test_prompts_of_another_type(llm: LLM, prompt: Any) -> None:
    with pytest.raises(TypeError):
        llm.generate([prompt], use_tqdm=False)


def test_text_without_a_tokenizer(llama: LLM) -> None:
    prompt = {"prompt_token_ids": [1, 2]}
    for attempt in (
        lambda: llama.generate("hello", use_tqdm=False),
        lambda: llama.chat([{"role": "user", "content": "hello"}], use_tqdm=False),
        lambda: llama.generate(prompt, SamplingParams(stop="x"), use_tqdm=False),
    ):
        with pytest.raises(ValueError, match="this file has no tokenizer; pass prompt_token_ids"):
            attempt()


def test_parameters_that_do_not_fit_the_call(llm: LLM) -> None:
    with pytest.raises(ValueError, match="one for each of 1, got 2"):
        llm.generate(["hello"], [SamplingParams(), SamplingParams()], use_tqdm=False)
    with pytest.raises(ValueError, match="logit_bias must name tokens below the vocabulary size 256, got 300"):
        llm.generate("hello", SamplingParams(logit_bias={300: 1.0}), use_tqdm=False)


def test_options_that_no_model_has(llm: LLM) -> None:
    with pytest.raises(ValueError, match='dtype must be "auto", "float32" or "bfloat16", got \'float16\''):
        LLM(llm.path, dtype="float16")
    with pytest.raises(ValueError, match="implementation must be one of"):
        LLM(llm.path, implementation="fast", quiet=True)


def test_points_that_the_model_lacks(llm: LLM) -> None:
    message = r"no activation point matches 'layers.9.resid_post'; this model has embed, .*layers\.\*\.resid_post"
    with pytest.raises(ValueError, match=message):
        llm.capture("hello", "layers.9.resid_post")
    with pytest.raises(ValueError, match="no activation point matches 'attn'"):
        llm.logits([1], edits={"attn": jnp.negative})
    with pytest.raises(ValueError, match="prompts and points must name at least one each"):
        llm.capture("hello", [])
    with pytest.raises(ValueError, match="prompts and points must name at least one each"):
        llm.capture([], "embed")


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("first", 'positions must be "all", "last" or a slice, got \'first\''),
        (slice(50, None), "chooses none of a prompt's tokens"),
        (slice(None, None, -1), "positions must step forward"),
    ],
)
def test_positions_that_choose_nothing(llm: LLM, positions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.capture("hello", "embed", positions=positions)


def test_an_edit_that_changes_the_shape_leaves_no_trace(llm: LLM) -> None:
    free = llm._engine.blocks.free
    with pytest.raises(ValueError, match=r"an edit of resid_post must keep the shape \(16, 64\), got \(64,\)"):
        llm.generate("hello", edits={"layers.0.resid_post": lambda x: x[0]}, use_tqdm=False)
    assert llm._engine.blocks.free == free and not llm._engine.has_work
