"""A jinja2 sandbox in which nothing runs long or grows large."""

from __future__ import annotations

import functools
import re
import string
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from realm_jax.tokenizer.errors import ChatTemplateError
from realm_jax.tokenizer.template_bounds import Meter, TemplateLimits
from realm_jax.tokenizer.template_filters import bounded_filters, charge_replace

__all__ = ["TemplateSandbox"]

MAX_INTEGER_BITS = 4096
MAX_FIELD_WIDTH = 1000
_NUMBER = re.compile(r"\d+")
_PERCENT_FIELD = re.compile(r"%[^a-zA-Z%]*[a-zA-Z%]")
_SCALAR_METHODS = frozenset({"is_integer", "bit_length"})
_PADDING = frozenset({"ljust", "rjust", "center", "zfill"})


class _OpaqueNamespace(Namespace):
    """A namespace that prints as its name: two that hold each other could print without end."""

    def __repr__(self) -> str:
        return "<namespace>"


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; in a prompt it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


class _Metering(NodeTransformer):
    """Adds the checks that jinja2 has no hook for: loops, `~`, comparisons and literal containers."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick"), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenate", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._bounded(node.expr)
        for operand in node.ops:
            operand.expr = self._bounded(operand.expr)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._bounded(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._bounded(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._bounded(node) if node.ctx == "load" else node

    def _bounded(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _call("bounded", node)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Runs templates from files that nobody vouches for.

    jinja2's immutable sandbox keeps them from Python's internals and from changing their arguments. On
    top of it every operation that can enlarge a value announces the size first, and every loop, call
    and filter looks at the clock, so that no single step is long and no sequence of steps is endless.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=self.text,
            cache_size=0,
        )
        self._local = threading.local()
        self.filters = dict(bounded_filters(lambda: self.meter, self.text))
        self.tests = {name: self._ticking(test) for name, test in self.tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "namespace": _OpaqueNamespace,
            "dict": self._dict,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
        }

    @property
    def meter(self) -> Meter:
        """The meter of the rendering in this thread."""
        return self._local.meter

    @contextmanager
    def metered(self, limits: TemplateLimits) -> Iterator[Meter]:
        """Apply `limits` to all that this thread compiles and renders inside the block."""
        self._local.meter = Meter(limits)
        try:
            yield self._local.meter
        finally:
            del self._local.meter

    def with_checks(self, source: str) -> nodes.Template:
        """Parse a template and add the checks."""
        return _Metering().visit(self.parse(source))

    def tick(self) -> None:
        """Called by each turn of a loop."""
        self.meter.tick()

    def bounded(self, value: Any) -> Any:
        """Pass a value on if it is not too large to print or compare."""
        self.meter.inspect(value)
        return value

    def text(self, value: Any) -> str:
        """`str`, metered."""
        if not isinstance(value, str):
            self.meter.weigh(value)
            value = str(value)
        return value

    def concatenate(self, *values: Any) -> str:
        """The `~` operator."""
        return self.concat(map(self.text, values))

    def concat(self, parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Join the output of a macro or block."""
        parts = list(parts)
        self.meter.charge(sum(map(len, parts)))
        return "".join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check the size of a result, then compute it."""
        self._check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _check_binop(self, operator: str, left: Any, right: Any) -> None:
        sequences = (str, bytes, list, tuple)
        match operator:
            case "+" if isinstance(left, sequences) and isinstance(right, sequences):
                self.meter.charge(len(left) + len(right))
            case "*" if isinstance(left, sequences) or isinstance(right, sequences):
                sequence, times = (left, right) if isinstance(left, sequences) else (right, left)
                self.meter.weigh(sequence, max(1, times) if isinstance(times, int) else 1)
            case "%" if isinstance(left, (str, bytes)):
                self._check_percent(str(left), right)
            case "*" | "**" | "+" | "-" if isinstance(left, int) and isinstance(right, int):
                _require_small(operator, left, right)

    def _check_percent(self, template: str, arguments: Any) -> None:
        fields = _PERCENT_FIELD.findall(template)
        for field in fields:
            _require_narrow(field, "*" in field)
        self.meter.weigh([template, arguments], 1 + len(fields))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        """Check the size of a method's result, then call it."""
        self.meter.tick()
        owner = getattr(obj, "__self__", getattr(getattr(obj, "__wrapped__", None), "__self__", None))
        name = getattr(obj, "__name__", "")
        if isinstance(owner, (int, float, complex, bytes)) and name not in _SCALAR_METHODS:
            raise ChatTemplateError(f"a chat template may not call {type(owner).__name__}.{name}")
        if isinstance(owner, str):
            args = self._check_text_method(owner, name, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, list):
            self.meter.charge(len(result))
        return result

    def _check_text_method(
        self, owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Account for what a text's method returns; give back its arguments, iterators made into lists."""
        self.meter.charge(len(owner))
        if name in _PADDING and args:
            self.meter.charge(int(args[0]))
        elif name == "expandtabs":
            width = int([*args, *kwargs.values(), 8][0])
            self.meter.charge(owner.count("\t") * max(0, width))
        elif name == "replace" and len(args) >= 2:
            charge_replace(self.meter, owner, str(args[0]), str(args[1]))
        elif name == "join" and args:
            args = (list(args[0]),)
            self.meter.weigh(args)
            self.meter.charge(len(owner) * len(args[0]))
        elif name in ("format", "format_map"):
            self.meter.weigh([args, kwargs], 1 + owner.count("{"))
        elif name == "translate":
            raise ChatTemplateError("a chat template may not call str.translate; use replace")
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuse a `format` whose fields are wide or take their width from an argument."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            for _, _, specification, _ in string.Formatter().parse(str(value.__self__)):
                _require_narrow(specification or "", "{" in (specification or ""))
        return wrapped

    def _dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return self.bounded(dict(*args, **kwargs))

    def _ticking(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            return test(*args, **kwargs)

        return run


def _require_small(operator: str, left: int, right: int) -> None:
    bits = {
        "*": left.bit_length() + right.bit_length(),
        "**": left.bit_length() * max(0, right),
    }.get(operator, max(left.bit_length(), right.bit_length()) + 1)
    if bits > MAX_INTEGER_BITS:
        raise ChatTemplateError(f"an integer in a chat template must have at most {MAX_INTEGER_BITS} bits, got {bits}")


def _require_narrow(field: str, computed: bool) -> None:
    if computed or any(len(number) > 4 or int(number) > MAX_FIELD_WIDTH for number in _NUMBER.findall(field)):
        raise ChatTemplateError(
            f"a field in a chat template must have a fixed width up to {MAX_FIELD_WIDTH}, got {field!r}"
        )
