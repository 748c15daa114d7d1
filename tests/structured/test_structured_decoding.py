"""Whatever the logits, an output meets its constraint, and jumping over forced tokens changes none."""

import json
import re

import jsonschema
import pytest
from grammar_steps import allowed, decode
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.structured import StructuredOutputs

SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
    "enum": {"enum": ["red", "grün", "\u2603", 3, None, {"a": [True]}]},
    "nested": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
            "inner": {"$ref": "#/$defs/inner"},
        },
        "required": ["tags", "inner"],
        "additionalProperties": False,
        "$defs": {
            "inner": {
                "type": "object",
                "properties": {"yes": {"type": "boolean"}, "other": {"anyOf": [{"type": "null"}, {"type": "string"}]}},
                "required": ["yes", "other"],
                "additionalProperties": False,
            }
        },
    },
    "number": {"type": "number", "minimum": -2.5, "exclusiveMaximum": 7},
    "unicode": {"type": "string", "pattern": "^[α-ωé☃]{1,6}$"},
    "length": {"type": "string", "minLength": 3, "maxLength": 5},
}
REGEXES = [r"(\+49|0)[1-9][0-9]{2,6}", r"[α-ω]{2,5} = (yes|no)", r"a*b?", r"^[0-9]{4}-[0-9]{2}/[0-9]{2}$"]
CHOICES = ["positive", "neutral", "negative", "positively", 'é😀\n"\\\x01/', "none at all"]
ARITHMETIC = """
start: sum
sum: product ("+" product){0,3}
product: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEMAS)
def test_json_follows_its_schema(model, name, temperature) -> None:
    for seed, style in enumerate(({}, {"disable_any_whitespace": True}, {"whitespace_pattern": "[ ]?"})):
        text = decode(*model, StructuredOutputs(json=SCHEMAS[name], **style), seed, temperature=temperature)
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        if "disable_any_whitespace" in style:
            assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text))


def test_a_json_object_is_one(model) -> None:
    assert isinstance(json.loads(decode(*model, StructuredOutputs(json_object=True), 0)), dict)


@pytest.mark.parametrize("regex", REGEXES)
def test_a_regular_expression_matches_the_whole_output(model, regex) -> None:
    for seed in range(3):
        assert re.fullmatch(regex, decode(*model, StructuredOutputs(regex=regex), seed))


def test_digits_are_those_of_ascii(model) -> None:
    for seed in range(3):
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}", decode(*model, StructuredOutputs(regex=r"\d{4}-\d{2}"), seed))


def test_one_choice_comes_out(model) -> None:
    seen = {decode(*model, StructuredOutputs(choice=CHOICES), seed) for seed in range(8)}
    assert seen <= set(CHOICES)
    assert len(seen) > 1


def test_a_grammar_is_followed(model) -> None:
    for seed in range(3):
        text = decode(*model, StructuredOutputs(grammar=ARITHMETIC), seed)
        assert re.fullmatch(r"[0-9+()]+", text)
        eval(re.sub(r"0+(?=[0-9])", "", text), {})  # Python reads the sum too, once its leading zeros are gone


PROPERTY = st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "boolean", "null"])})
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), max_codepoint=0x2FFF), min_size=1, max_size=12)
OBJECTS = st.dictionaries(NAMES, PROPERTY, min_size=1, max_size=4).map(
    lambda properties: {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
)


@settings(max_examples=25)
@given(schema=OBJECTS, seed=st.integers(0, 2**32 - 1))
def test_any_object_of_named_properties(small, schema, seed) -> None:
    text = decode(*small, StructuredOutputs(json=schema, disable_any_whitespace=True), seed)
    value = json.loads(text)
    jsonschema.validate(value, schema)
    assert list(value) == list(schema["properties"])


@pytest.mark.parametrize("name", ["object", "nested"])
def test_forced_tokens_are_those_that_masks_leave(model, name) -> None:
    """At every step of a walk that takes the first or the last allowed token in turn."""
    tokenizer, compiler = model
    state = compiler.start(StructuredOutputs(json=SCHEMAS[name], disable_any_whitespace=True))
    forced_count = 0
    for step in range(60):
        if state.finished:
            break
        forced = state.forced_tokens()
        walker = state.copy()
        for token in forced:
            assert allowed(walker, compiler) == [token]
            assert walker.accept(token)
        forced_count += len(forced)
        token = forced[0] if forced else allowed(state, compiler)[-1 if step % 2 else 0]
        assert state.accept(token)
    assert forced_count >= 3
