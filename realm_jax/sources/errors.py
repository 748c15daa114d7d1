"""Owns the one error that finding or fetching a model raises."""


class SourceError(ValueError):
    """A model that cannot be found or fetched; the message is one sentence with rule, value and remedy."""
