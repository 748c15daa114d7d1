"""Owns how an error reads on the command line: one sentence, whatever was raised."""


class CommandError(ValueError):
    """Something the user asked for that cannot be done; the message is one sentence."""


def sentence(error: Exception) -> str:
    """Say an error in one line.

    ValueError, OSError and RuntimeError itself are the ways in which the library refuses what it was given or cannot
    do here; anything else is a fault of this program, and says so.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # the latter is XLA's word for it
        return f"not enough memory ({text or 'allocation failed'}); try a smaller --max-model-len or a smaller model"
    if (isinstance(error, ValueError | OSError) or type(error) is RuntimeError) and text:
        return text
    return f"internal error, {type(error).__name__}: {text or 'no message'} (--debug shows where)"
