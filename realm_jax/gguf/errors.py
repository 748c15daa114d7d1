"""The error raised for a file that is not a well-formed GGUF file."""


class GGUFError(ValueError):
    """A file breaks a rule of the GGUF format; the message names the field, the byte offset and the remedy."""
