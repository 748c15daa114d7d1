"""A GGUF model, of one file or of many shards: `open` and what it returns."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from realm_jax.gguf.errors import GGUFError, TruncatedError, show
from realm_jax.gguf.shard import Shard, open_shard
from realm_jax.gguf.tensors import RawTensor
from realm_jax.gguf.values import Metadata

_Kind = TypeVar("_Kind")
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SCALARS = (bool, int, float, str)


class GGUFFile:
    """The metadata and tensors of a GGUF model.

    `paths` are its files in order; `version`, `alignment`, `byte_order` and `metadata` are those of the first.
    Values are int, float, bool or str; an array of numbers is a read-only np.ndarray, an array of strings a
    Sequence[str], an array of arrays a tuple. A string that is not UTF-8 is decoded with surrogateescape.
    """

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        """Join `shards`, whose tensor names must differ."""
        first = shards[0]
        self.paths = tuple(shard.path for shard in shards)
        self.version = first.version
        self.alignment = first.alignment
        self.byte_order = first.byte_order
        self._metadata: Metadata | None = first.metadata
        self._tensors: Mapping[str, RawTensor] | None = MappingProxyType(_join(shards))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata in the order of the file."""
        if self._metadata is None:
            raise GGUFError(f"{self.paths[0]}: the file is closed; read its metadata before close()")
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, RawTensor]:
        """The tensors by name, in the order of the files."""
        if self._tensors is None:
            raise GGUFError(f"{self.paths[0]}: the file is closed; take its tensors before close()")
        if self._tensors and self.byte_order == "big":
            raise GGUFError(
                f"{self.paths[0]}: tensor data must be little-endian, but the file is big-endian; "
                "convert it with `gguf-convert-endian FILE little` of the gguf package"
            )
        return self._tensors

    @property
    def architecture(self) -> str:
        """The value of general.architecture."""
        return self.require("general.architecture", str)

    def require(self, key: str, kind: type[_Kind]) -> _Kind:
        """Return the value of `key`, which must exist and be of `kind`; an integer passes as a float."""
        if key not in self.metadata:
            raise GGUFError(f"{self.paths[0]}: metadata {show(key)} is required but missing; convert the model again")
        return self._typed(key, kind)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` when it is absent.

        When `default` is a bool, int, float or str, the value must be of that type; an integer passes as a float.
        """
        if key not in self.metadata:
            return default
        return self._typed(key, type(default)) if isinstance(default, _SCALARS) else self.metadata[key]

    def _typed(self, key: str, kind: type[_Kind]) -> _Kind:
        value: Any = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise GGUFError(
                f"{self.paths[0]}: metadata {show(key)} must be {kind.__name__}, "
                f"got {show(value)}; convert the model again"
            )
        return value

    def close(self) -> None:
        """Let go of the files. Arrays taken before stay valid; a file is unmapped when its last array is gone."""
        self._metadata = None
        self._tensors = None

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Show the path and the counts."""
        if self._metadata is None or self._tensors is None:
            return f"GGUFFile({str(self.paths[0])!r}, closed)"
        return f"GGUFFile({str(self.paths[0])!r}, {len(self._metadata)} keys, {len(self._tensors)} tensors)"


def open(path: str | os.PathLike[str], *, header_only: bool = False) -> GGUFFile:
    """Open a GGUF model and read its header; no tensor data is read.

    The path of any shard of a split model opens all of them. The files are mapped, so they must not be shortened
    while arrays of them are in use. Raises FileNotFoundError when a file is missing and GGUFError when one is
    not well-formed.

    With `header_only` files may end anywhere behind the entries of their tensors, as after a download of their first
    megabytes. Names, types, shapes and sizes are read and checked as ever, but for the end of the data; `data` of every
    tensor raises GGUFError, whether the bytes are there or not.
    """
    shard = open_shard(Path(path), header_only=header_only)
    paths = _shard_paths(shard)
    shards = tuple(shard if path == shard.path else open_shard(path, header_only=header_only) for path in paths)
    if len(shards) > 1:
        _check_shards(shards)
    return GGUFFile(shards)


def holds_header(path: str | os.PathLike[str]) -> bool:
    """Whether a file, which may be the beginning of one, holds the whole header of one GGUF file.

    Raises GGUFError for one that is not well-formed as far as it goes.
    """
    try:
        open_shard(Path(path), header_only=True)
    except TruncatedError:
        return False
    return True


def _join(shards: tuple[Shard, ...]) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for shard in shards:
        twice = tensors.keys() & shard.tensors.keys()
        if twice:
            raise GGUFError(
                f"{shard.path}: tensor {show(min(twice))} is in an earlier shard too; fetch the model again"
            )
        tensors |= shard.tensors
    return tensors


def _shard_paths(shard: Shard) -> tuple[Path, ...]:
    count = shard.metadata.get("split.count", 1)
    if type(count) is not int or count < 0:
        raise GGUFError(
            f"{shard.path}: metadata 'split.count' must be a count, got {show(count)}; split the model again"
        )
    if count <= 1:
        return (shard.path,)
    name = _SHARD_NAME.fullmatch(shard.path.name)
    if name is None or int(name["count"]) != count:
        raise GGUFError(
            f"{shard.path}: the name of a shard must end in -00001-of-{count:05d}.gguf with its own number; "
            "give the shards their original names"
        )
    paths = tuple(
        shard.path.with_name(f"{name['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)
    )
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{shard.path}: {len(missing)} of {count} shards are missing, first {missing[0]}; "
            "put all shards in one folder"
        )
    return paths


def _check_shards(shards: tuple[Shard, ...]) -> None:
    total = sum(len(shard.tensors) for shard in shards)
    for number, shard in enumerate(shards):
        expected = {"split.no": number, "split.count": len(shards), "split.tensors.count": total}
        for key, value in expected.items():
            found = shard.metadata.get(key)
            if type(found) is not int or found != value:
                got = "nothing" if found is None else show(found)
                raise GGUFError(
                    f"{shard.path}: metadata {key!r} must be {value}, got {got}; "
                    "the shards do not belong together, so fetch the model again"
                )
        if shard.byte_order != shards[0].byte_order:
            raise GGUFError(f"{shard.path}: all shards must have one byte order; fetch the model again")
