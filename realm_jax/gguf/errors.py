"""The error raised for a file that is not a well-formed GGUF file, and how its message shows a value."""

_SHOWN_CHARACTERS = 80


class GGUFError(ValueError):
    """A file breaks a rule of the GGUF format; the message names the field, the byte offset and the remedy."""


class TruncatedError(GGUFError):
    """A file ends before what its beginning announces; nothing says that more of it would be wrong."""


def show(value: object) -> str:
    """Return `value` as a message shows it: on one line, long text cut short, anything but a scalar by its type."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "...")
    return repr(value) if isinstance(value, (bool, int, float)) else type(value).__name__
