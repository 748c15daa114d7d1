"""StructuredOutputs holds one well-formed constraint, is hashable, and says what is wrong with others."""

import sys

import pytest

from realm_jax.sampling import SamplingParams
from realm_jax.structured import StructuredOutputs

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


def test_a_schema_may_be_a_mapping_or_its_text() -> None:
    outputs = StructuredOutputs(json=SCHEMA)
    assert outputs.json == '{"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}'
    assert StructuredOutputs(json=outputs.json) == outputs


def test_equal_constraints_are_one_key() -> None:
    pairs = [({"json": SCHEMA}, {"json": dict(SCHEMA)}), ({"choice": ["a", "b"]}, {"choice": ("a", "b")})]
    for first, second in pairs:
        assert len({StructuredOutputs(**first), StructuredOutputs(**second)}) == 1
    assert hash(SamplingParams(structured_outputs=StructuredOutputs(regex="a+")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of json, regex, choice, grammar, json_object must be given, got none"),
        ({"json": SCHEMA, "regex": "a"}, "exactly one of .* must be given, got json, regex"),
        ({"json": "{"}, "json must be a JSON schema, got one that is no JSON: Expecting property name"),
        ({"json": {"a": {1}}}, "json must be a JSON schema, got one that is no JSON: .*set"),
        ({"json": "[1]"}, r"json must be a JSON schema, which is an object, got \[1\]"),
        ({"json": {"type": "strange"}}, "json is malformed or not supported: Invalid type: strange; change it"),
        ({"json": {"not": {}}}, 'json is malformed or not supported: Unimplemented keys: ."not".; change it'),
        ({"json": {"$ref": "http://localhost/a"}}, "json is malformed or not supported: Resource"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "json is malformed .*look-around"),
        ({"json": '{"items":' * 300 + "{}" + "}" * 300}, "json is malformed or not supported: recursion limit"),
        ({"regex": "("}, "regex is malformed or not supported: .*unclosed group"),
        ({"regex": "a(?=b)"}, "regex is malformed or not supported: .*look-around"),
        ({"regex": ""}, "regex must be a non-empty string, got ''"),
        ({"regex": "\ud800"}, "regex is malformed or not supported: .*surrogates not allowed"),
        ({"choice": []}, "choice must be a non-empty list of strings"),
        ({"choice": "yes"}, "choice must be a non-empty list of strings, got 'yes'"),
        ({"choice": ["yes", ""]}, "choice must be a list of non-empty strings, got '' in it"),
        ({"choice": ["\ud800"]}, "choice is malformed or not supported: .*surrogates not allowed"),
        ({"grammar": "start: foo"}, 'grammar is malformed or not supported: .*unknown name: "foo"'),
        ({"grammar": 'begin: "a"'}, "grammar is malformed or not supported: no start rule found"),
        ({"json_object": True, "whitespace_pattern": "("}, "whitespace_pattern is malformed .*unclosed group"),
        ({"regex": "a", "whitespace_pattern": " "}, "need json or json_object, got regex"),
        ({"choice": ["a"], "disable_any_whitespace": True}, "need json or json_object, got choice"),
        (
            {"json_object": True, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "whitespace_pattern must not be given with disable_any_whitespace",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_constraint_is_refused_in_one_line(fields, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StructuredOutputs(**fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"needs the package llguidance.*pip install 'realm-jax\[structured\]'"):
        StructuredOutputs(regex="a")
