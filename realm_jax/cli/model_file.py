"""Owns opening the file of the model that a command names."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realm_jax.cli.console import progress_bars
from realm_jax.sources import resolve, resolve_beginning

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


@contextlib.contextmanager
def located_header(model: str, *, cache_dir: Path | None, offline: bool) -> Iterator[Path]:
    """The path, while the context lasts, of a file that holds the model's header at least.

    A model of the hub that is not in the cache is not downloaded: the first megabytes of its files are.
    """
    from realm_jax import gguf

    with tempfile.TemporaryDirectory(prefix="realm-header-") as folder:
        where: Any = {"cache_dir": cache_dir, "offline": offline}
        with progress_bars() as progress:
            path = resolve_beginning(model, Path(folder), gguf.holds_header, **where, progress=progress)
        yield path
