"""Owns finding a model: a path, a file of the Hugging Face hub, or a name in a small catalogue."""

from realm_jax.sources.catalogue import CATALOGUE, DEFAULT_MODEL, PackagedModel
from realm_jax.sources.errors import SourceError
from realm_jax.sources.progress import Progress
from realm_jax.sources.resolve import default_cache_dir, resolve, resolve_beginning

__all__ = [
    "CATALOGUE",
    "DEFAULT_MODEL",
    "PackagedModel",
    "Progress",
    "SourceError",
    "default_cache_dir",
    "resolve",
    "resolve_beginning",
]
