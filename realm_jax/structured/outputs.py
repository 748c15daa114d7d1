"""StructuredOutputs: what the output of a request must be, under vLLM's names and with vLLM's meaning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from realm_jax.structured.library import llguidance

_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
_JSON_CONSTRAINTS = ("json", "json_object")
_LONGEST_REASON = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    r"""One constraint that the whole output meets; end tokens come after it. Needs the extra `structured`.

    Attributes:
        json: a JSON schema, as text or as a mapping; kept as text. Properties come in the schema's order.
        regex: a regular expression in Rust's syntax that matches the whole output; no look-around. `\d` is 0 to 9
            and no other digit of Unicode.
        choice: the texts of which the output is one; kept as a tuple.
        grammar: a grammar in llguidance's dialect of Lark, https://github.com/guidance-ai/llguidance (docs/syntax.md).
        json_object: whether the output is any JSON object.
        whitespace_pattern: a regular expression for the white space between the parts of JSON; None allows any.
        disable_any_whitespace: whether JSON is written without white space, which also forces more tokens.

    Raises:
        ValueError: not exactly one constraint is given, or it is malformed or not supported.
        ImportError: llguidance is not installed.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        name = _only_constraint(self)
        if name not in _JSON_CONSTRAINTS and (self.whitespace_pattern is not None or self.disable_any_whitespace):
            raise ValueError(f"whitespace_pattern and disable_any_whitespace need json or json_object, got {name}")
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise ValueError("whitespace_pattern must not be given with disable_any_whitespace; remove one of them")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for field in ("regex", "grammar"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{field} must be a non-empty string, got {value!r}; remove it for no constraint")
        if self.whitespace_pattern is not None:
            pattern = self.whitespace_pattern
            _require_valid("whitespace_pattern", lambda: llguidance().LLMatcher.grammar_from_regex(pattern))
        _require_valid(name, self.source)

    def source(self) -> str:
        """The constraint as llguidance reads it."""
        library = llguidance()
        matcher = library.LLMatcher
        if self.regex is not None:
            return matcher.grammar_from_lark(f"start: /{library.regex_to_lark(self.regex, 'd')}/")
        if self.choice is not None:
            return matcher.grammar_from_lark(
                "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choice)
            )
        if self.grammar is not None:
            return matcher.grammar_from_lark(self.grammar)
        options: dict[str, Any] = {"whitespace_flexible": not self.disable_any_whitespace}
        if self.whitespace_pattern is not None:
            options["whitespace_pattern"] = self.whitespace_pattern
        return matcher.grammar_from_json_schema(self.json or '{"type": "object"}', defaults=options)


def _only_constraint(outputs: StructuredOutputs) -> str:
    given = [name for name in _CONSTRAINTS if getattr(outputs, name) not in (None, False)]
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(_CONSTRAINTS)} must be given, got {', '.join(given) or 'none'}")
    return given[0]


def _schema_text(schema: Any) -> str:
    """A schema as JSON text, its keys in their order."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
        parsed = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json must be a JSON schema, got one that is no JSON: {shortened(str(error))}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"json must be a JSON schema, which is an object, got {shortened(text)}")
    return text


def _choices(choice: Any) -> tuple[str, ...]:
    if isinstance(choice, str) or not isinstance(choice, Sequence) or not choice:
        raise ValueError(f"choice must be a non-empty list of strings, got {choice!r}; give each text that may come")
    for text in choice:
        if not isinstance(text, str) or not text:
            raise ValueError(f"choice must be a list of non-empty strings, got {text!r} in it; remove it")
    return tuple(choice)


def _require_valid(name: str, source: Callable[[], str]) -> None:
    try:
        wrong, messages = llguidance().LLMatcher.validate_grammar_with_warnings(source())
    except ValueError as error:  # no valid Unicode, or nested too deeply
        wrong, messages = True, [str(error)]
    if wrong:
        raise ValueError(f"{name} is malformed or not supported: {shortened(' '.join(messages))}; change it")


def shortened(reason: str) -> str:
    """One line of a reason that may have many."""
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."
