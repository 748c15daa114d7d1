"""One GGUF file on disk: its header read and checked, its tensors mapped."""

import dataclasses
import mmap
import stat
from pathlib import Path
from typing import Any

from realm_jax.gguf.cursor import Cursor
from realm_jax.gguf.errors import GGUFError, show
from realm_jax.gguf.tensors import MAX_BYTES, RawTensor, map_tensors, read_tensor_info
from realm_jax.gguf.values import Metadata, ValueReader

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 1 << 16
MAX_KEY_BYTES = 65_535
_ALIGNMENT_KEY = "general.alignment"
_MIN_ENTRY_BYTES = 14
_MIN_TENSOR_BYTES = 25
_FOREIGN_FORMATS = (
    (0, (b"version https://git-lfs",), "it is a Git LFS pointer, so fetch the file itself with `git lfs pull`"),
    (0, (b"<",), "it is a web page, so download the file itself and not the page about it"),
    (0, (b"PK\x03\x04",), "it is a zip archive or a PyTorch checkpoint, so unpack it or convert it to GGUF"),
    (0, (b"lmgg", b"fmgg", b"tjgg", b"algg"), "it is a GGML file from before GGUF, so download a GGUF of the model"),
    (8, (b'{"',), "it looks like a safetensors file, so convert the model to GGUF"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shard:
    """One file of a model: its header values and its tensors."""

    path: Path
    version: int
    byte_order: str
    alignment: int
    metadata: Metadata
    tensors: dict[str, RawTensor]


def open_shard(path: Path, *, header_only: bool = False) -> Shard:
    """Map the file at `path` and read its header; with `header_only` what is behind it may be absent.

    | "GGUF" | u32 version | u64 tensor count | u64 metadata count | metadata | tensor entries | padding | data |
    """
    cursor = Cursor(_map(path), str(path))
    version = _read_version(cursor)
    n_tensors = cursor.count("Q", "the tensor count", _MIN_TENSOR_BYTES, MAX_ENTRIES)
    n_values = cursor.count("Q", "the metadata count", _MIN_ENTRY_BYTES, MAX_ENTRIES)
    metadata = _read_metadata(cursor, n_values)
    alignment = _alignment(cursor, metadata)
    limit = MAX_BYTES if header_only else cursor.size
    infos = [read_tensor_info(cursor, index, limit) for index in range(n_tensors)]
    return Shard(
        path=path,
        version=version,
        byte_order="little" if cursor.order == "<" else "big",
        alignment=alignment,
        metadata=metadata,
        tensors=map_tensors(cursor, infos, alignment, header_only=header_only),
    )


def _map(path: Path) -> mmap.mmap:
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check the path of the GGUF file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise GGUFError(f"{path}: the path must name a GGUF file, but it is {kind}; give the path of the .gguf file")
    if size == 0:
        raise GGUFError(f"{path}: a GGUF file must start with {MAGIC!r}, but the file is empty; fetch it again")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> GGUFError:
    reason = error.strerror if isinstance(error, OSError) else error
    return GGUFError(f"{path}: the file cannot be read ({reason}); check its path and permissions")


def _read_version(cursor: Cursor) -> int:
    magic = cursor.buffer[: len(MAGIC)]
    if magic != MAGIC:
        raise GGUFError(
            f"{cursor.name}: a GGUF file must start with {MAGIC!r}, got {magic!r}; "
            f"{_foreign_remedy(cursor.buffer[:32])}"
        )
    cursor.position = len(MAGIC)
    version = cursor.integer("I", "the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped < version:
        cursor.order = ">"
        version = swapped
    if version not in SUPPORTED_VERSIONS:
        rule = f"must be one of {SUPPORTED_VERSIONS}, got {version}"
        raise cursor.error("the version", rule, len(MAGIC), "download or convert the model again as GGUF version 3")
    return version


def _foreign_remedy(start: bytes) -> str:
    for offset, signs, remedy in _FOREIGN_FORMATS:
        if start[offset:].startswith(signs):
            return remedy
    return "give the path of a GGUF model file"


def _read_metadata(cursor: Cursor, count: int) -> Metadata:
    reader = ValueReader(cursor, MAX_ENTRIES)
    values: dict[str, Any] = {}
    for index in range(count):
        at = cursor.position
        key = cursor.name_string(f"metadata key {index}", MAX_KEY_BYTES)
        if key in values:
            raise cursor.error(f"metadata key {show(key)}", "appears twice", at)
        values[key] = reader.read(f"metadata {show(key)}")
    return Metadata(values)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise GGUFError(
            f"{cursor.name}: {_ALIGNMENT_KEY} must be a power of two, got {show(alignment)}; convert the model again"
        )
    return alignment
