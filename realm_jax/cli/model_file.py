"""Owns opening the file of the model that a command names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realm_jax.cli.console import progress_bars
from realm_jax.sources import resolve

if TYPE_CHECKING:  # numpy takes longer to import than `realm --help` may take
    from realm_jax.gguf import GGUFFile


def locate_model(model: str, *, cache_dir: Path | None, offline: bool, refresh: bool = False) -> Path:
    """Return the path of a model's file, downloading it behind a progress bar if need be."""
    with progress_bars() as progress:
        return resolve(model, cache_dir=cache_dir, offline=offline, refresh=refresh, progress=progress)


@contextlib.contextmanager
def open_model(model: str, *, cache_dir: Path | None, offline: bool) -> Iterator["GGUFFile"]:
    """Open a model's file while the context lasts; needs no JAX."""
    from realm_jax import gguf

    with gguf.open(locate_model(model, cache_dir=cache_dir, offline=offline)) as file:
        yield file
