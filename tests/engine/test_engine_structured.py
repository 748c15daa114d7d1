"""Structured output through the engine: constrained and free requests in one batch, and tokens that are forced."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from realm_jax import LLM, SamplingParams, StructuredOutputs
from realm_jax.outputs import RequestOutput

TINY = Path(__file__).parents[1] / "data" / "tiny"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "favourite_colour": {"enum": ["red", "green", "blue"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "favourite_colour", "age"],
    "additionalProperties": False,
}
PERSON = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(smollm2_path, max_model_len=256, max_num_seqs=4, quiet=True)


def asked(outputs: StructuredOutputs | None, **options: Any) -> SamplingParams:
    usual: dict[str, Any] = {"temperature": 0.8, "seed": 4, "max_tokens": 60, "structured_outputs": outputs}
    return SamplingParams(**{**usual, **options})


REQUESTS = (
    ("Describe a person in JSON: ", asked(PERSON)),
    ("The sky is", asked(None, max_tokens=20)),
    ("Is water wet? Answer:", asked(StructuredOutputs(choice=["yes", "no", "certainly not"]))),
    ("My telephone number is", asked(StructuredOutputs(regex=r"\+\d{2} \d{3}-\d{4}"), temperature=0.0)),
    ("Another person: ", asked(PERSON, seed=9)),
    ("A third: ", asked(PERSON, n=2, seed=11)),
)


def texts(outputs: list[RequestOutput]) -> list[list[tuple[str, str | None]]]:
    return [[(sample.text, sample.finish_reason) for sample in output.outputs] for output in outputs]


def generate(llm: LLM, requests: Any) -> list[list[tuple[str, str | None]]]:
    prompts, params = zip(*requests, strict=True)
    return texts(llm.generate(list(prompts), list(params), use_tqdm=False))


def test_each_request_meets_its_own_constraint(llm: LLM) -> None:
    persons, free, choice, number, other, third = generate(llm, REQUESTS)
    for text, reason in (*persons, *other, *third):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert reason == "stop"
    assert free[0][1] == "length"
    assert choice[0][0] in ("yes", "no", "certainly not")
    assert re.fullmatch(r"\+\d{2} \d{3}-\d{4}", number[0][0])


def test_company_changes_nothing(llm: LLM) -> None:
    if llm.implementation != "cpu":
        pytest.skip("sums of XLA depend on shapes")
    assert [generate(llm, [request])[0] for request in REQUESTS] == generate(llm, REQUESTS)


def test_forced_tokens_are_those_that_would_have_been_sampled(llm: LLM) -> None:
    """Where log-probabilities are asked for, every token is sampled by itself."""
    prompt, params = REQUESTS[0]
    stats = llm._engine.stats
    before = stats.steps
    jumped = generate(llm, [(prompt, params)])
    with_jumps = stats.steps - before
    (single,) = llm.generate(prompt, asked(PERSON, logprobs=0), use_tqdm=False)
    assert jumped == texts([single])
    assert len(single.outputs[0].token_ids) == stats.steps - before - with_jumps > 1.3 * with_jumps


def test_log_probabilities_are_those_among_the_allowed(llm: LLM) -> None:
    choice = asked(StructuredOutputs(choice=["yes", "no"]), logprobs=5, temperature=0.0)
    (output,) = llm.generate("Is water wet?", choice, use_tqdm=False)
    first = output.outputs[0].logprobs
    assert first is not None
    probable = [entry.decoded_token for entry in first[0].values() if entry.logprob > -1e9]
    assert probable and all("yes".startswith(t or "?") or "no".startswith(t or "?") for t in probable)


def test_a_bad_constraint_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ValueError, match="invalid regex"):
        llm.generate("hello", asked(StructuredOutputs(regex="(unclosed")), use_tqdm=False)
    tiny = LLM(TINY / "llama.gguf", max_model_len=32, dtype="float32", quiet=True)
    with pytest.raises(ValueError, match="this file has no tokenizer"):
        tiny.generate({"prompt_token_ids": [1]}, asked(StructuredOutputs(choice=["a"])), use_tqdm=False)
