"""What a program that was lowered for another platform holds: its operations and its calls of kernels."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

# They hold the others.
_CONTAINERS = ("builtin.module", "func.func")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """How often each operation and each kernel is run, functions counted as often as they are called, bodies of loops
    and branches once. Kernels are in `names` too. `dtypes`: the element types of all results.
    """

    names: collections.Counter[str]
    kernels: collections.Counter[str]
    dtypes: frozenset[str]


def lower_for_metal(function: Callable[..., Any], *operands: Any, donate: tuple[int, ...] = ()) -> Lowered:
    """Lower a function for `mps` from the shapes of its operands."""
    traced = jax.jit(function, donate_argnums=donate).trace(*operands)
    module = traced.lower(lowering_platforms=("mps",)).compiler_ir("stablehlo")
    functions = {operation.sym_name.value: operation for operation in module.body.operations}
    totals: dict[str, collections.Counter[str]] = {}
    dtypes: set[str] = set()

    def total(name: str) -> collections.Counter[str]:
        if name not in totals:
            counted = collections.Counter[str]()
            for operation in _inside(functions[name].operation):
                counted[operation.name] += 1
                dtypes.update(_element_type(result.type) for result in operation.results)
                if operation.name == "func.call":
                    counted.update(total(operation.attributes["callee"].value))
                elif operation.name == "stablehlo.custom_call":
                    counted[operation.attributes["call_target_name"].value] += 1
            totals[name] = counted
        return totals[name]

    names = total("main")
    kernels = collections.Counter({name: count for name, count in names.items() if name.startswith("mps.")})
    return Lowered(names=names, kernels=kernels, dtypes=frozenset(dtypes))


def _element_type(array: Any) -> str:
    return str(getattr(array, "element_type", array))


def _inside(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                if inner.operation.name not in _CONTAINERS:
                    yield inner.operation
                yield from _inside(inner.operation)
