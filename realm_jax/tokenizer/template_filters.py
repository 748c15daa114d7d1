"""The jinja2 filters that chat templates may use; those that can enlarge a text are metered exactly."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.filters
from jinja2.runtime import Undefined

from realm_jax.tokenizer.errors import ChatTemplateError

if TYPE_CHECKING:
    from realm_jax.tokenizer.template_bounds import Meter

__all__ = ["bounded_filters", "charge_replace"]

# Each reads a text and returns one no larger than a small multiple of it, or a number.
ON_TEXT = (
    "capitalize", "e", "escape", "forceescape", "lower", "safe", "striptags", "title", "trim", "truncate", "upper",
    "urlencode", "wordcount",
)  # fmt: skip
# Each looks at a list, or at its elements one by one.
ON_ITEMS = (
    "abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map", "reject",
    "rejectattr", "reverse", "round", "select", "selectattr",
)  # fmt: skip
# Each compares elements with all that they hold.
ON_ORDER = ["dictsort", "groupby", "max", "min", "sort", "unique"]
MAX_INDENT = 64


def charge_replace(meter: Meter, text: str, old: str, new: str) -> None:
    """Account for `text.replace(old, new)`."""
    meter.charge(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _require_indent(width: object) -> None:
    if isinstance(width, int) and not 0 <= width <= MAX_INDENT:
        raise ChatTemplateError(f"an indent in a chat template must lie in 0..{MAX_INDENT}, got {width}")
    if isinstance(width, str) and len(width) > MAX_INDENT:
        raise ChatTemplateError(f"an indent in a chat template must have at most {MAX_INDENT} characters")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: no HTML escapes, unlike jinja2's own filter."""
    _require_indent(indent)
    if isinstance(value, Undefined):
        raise ChatTemplateError("the chat template writes an undefined value as JSON; pass the variable it names")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _require_indent(width)
    return jinja2.filters.do_indent(str(text), width, first, blank)


def _on_text(function: Callable[..., Any], text: Callable[[Any], str]) -> Callable[..., Any]:
    """Turn the value into text where that is metered; it is the argument after jinja2's own, if it asks for one."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args[:place], text(args[place]), *args[place + 1 :], **kwargs)

    return run


def _on_items(function: Callable[..., Any], meter: Callable[[], Meter]) -> Callable[..., Any]:
    """Charge the list that a filter returns."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter().tick()
        result = function(*args, **kwargs)
        if isinstance(result, list):
            meter().charge(len(result))
        return result

    return run


def _weighed(function: Callable[..., Any], meter: Callable[[], Meter], factor: int = 1) -> Callable[..., Any]:
    """Charge the arguments with all that they hold, `factor` times."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter().weigh([args, kwargs], factor)
        return function(*args, **kwargs)

    return run


def _join(meter: Callable[[], Meter]) -> Callable[..., str]:
    @jinja2.pass_eval_context
    def join(context: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        meter().weigh(items)
        meter().charge(len(str(d)) * len(items))
        return jinja2.filters.FILTERS["join"](context, items, str(d), attribute)

    return join


def _replace(meter: Callable[[], Meter], text: Callable[[Any], str]) -> Callable[..., str]:
    @jinja2.pass_eval_context
    def replace(context: Any, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        s, old, new = text(s), text(old), text(new)
        charge_replace(meter(), s, old, new)
        return jinja2.filters.do_replace(context, s, old, new, count)

    return replace


def bounded_filters(meter: Callable[[], Meter], text: Callable[[Any], str]) -> Mapping[str, Callable[..., Any]]:
    """All filters by name; `meter` gives the current rendering's, `text` is a metered `str`."""
    library = jinja2.filters.FILTERS
    filters = {name: _on_text(library[name], text) for name in ON_TEXT}
    filters |= {name: _on_items(library[name], meter) for name in ON_ITEMS}
    filters |= {name: _weighed(library[name], meter) for name in ON_ORDER}
    filters["indent"] = _weighed(_indent, meter, MAX_INDENT)  # a text of empty lines grows by so much
    return filters | {
        "tojson": _weighed(_to_json, meter),
        "join": _join(meter),
        "replace": _replace(meter, text),
        "string": text,
    }
