"""The type checker that the import hook of jaxtyping wraps around the functions under test."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

__all__ = ["check"]

# The hook decorates methods one by one, and beartype knows what Self means only when it decorates the whole class.
_checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """Check arguments and results, unless one is typed by a protocol that cannot be tested for at run time."""
    try:
        return _checked(function)
    except BeartypeDecorHintPep3119Exception:
        return function
