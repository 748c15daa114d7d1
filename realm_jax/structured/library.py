"""llguidance, the optional library that parses grammars, imported on first use."""

from typing import Any


def llguidance() -> Any:
    """The library. ImportError that names the extra where it is not installed."""
    try:
        import llguidance as library
    except ImportError as error:
        raise ImportError(
            "structured output needs the package llguidance, which is missing; pip install 'realm-jax[structured]'"
        ) from error
    return library


def error_of(matcher: Any) -> str:
    """Why a matcher failed, in one line; the library marks the place of a dump of its state, which is off."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
