"""The two errors this package raises."""


class TokenizerError(ValueError):
    """A vocabulary that cannot be built from the metadata, or a text or id it cannot translate."""


class ChatTemplateError(ValueError):
    """A chat template that does not compile, refuses its input, or exceeds its bounds."""
