"""Tables of block sizes by kind of device: where they lie, what they hold, and which entry a kernel takes for a shape.

A table is a file of JSON:

::

    {"device_kind": "NVIDIA H[12]00*",           a pattern for the kinds that JAX names
     "made": "compiled, not measured",           how its entries were found
     "versions": {"jax": "0.10.2"},
     "entries": [{"kernel": "quantized_matmul decode", "format": "Q6_K",
                  "sizes": {"tokens": 16},       powers of two that hold the sizes; any size where one is left out
                  "config": {"rows": 64},        fields of the kernel's configuration; its heuristic gives the others
                  "facts": {...}}]}              what was found with it and with the heuristic's configuration

Tables of the user's folder come before those of the package, and in a table the entry that names most sizes first. An
entry whose configuration does not fit a shape is passed over, and without any the heuristic's configuration is taken.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax

SHIPPED = Path(__file__).parent / "tables"
"""The package's own tables."""
FOLDER_VARIABLE = "REALM_TABLES"
"""The environment variable that names another folder of the user's tables."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a table, see the module."""

    kernel: str
    format: str
    sizes: Mapping[str, int]
    config: Mapping[str, int]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What a file holds, see the module; `path` is that file."""

    path: Path
    device_kind: str
    made: str
    versions: Mapping[str, str]
    entries: tuple[Entry, ...]


def choose(
    kernel: str, format: str, sizes: Mapping[str, int], make: Callable[..., Config], problem: Callable[[Config], str]
) -> Config:
    """The configuration of a kernel for a shape on the device that is traced for.

    Args:
        kernel: its name in tables.
        format: of the weights, or of the keys and values.
        sizes: of the shape, by the names that tables have for them.
        make: from some fields to a whole configuration, by the heuristic.
        problem: why a configuration does not fit the shape; empty where it does.

    Raises:
        ValueError: a table that is malformed, or an entry for this shape that names no fields or sizes of the kernel.
    """
    kind = device_kind()
    for table in _tables_of(user_folder(), kind):
        for entry in _matching(table, kernel, format, sizes):
            config = _made(table, entry, make)
            if not problem(config):
                return config
    return make()


def device_kind() -> str:
    """JAX's name for the kind of device that is traced for, such as `NVIDIA H100 80GB HBM3`.

    The abstract mesh's in use where it names one, as for programs that are compiled without the device; else that of
    JAX's first device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def user_folder() -> Path:
    """`$REALM_TABLES`, or `realm-jax/tables` below the platform's cache folder (see `default_cache_dir`)."""
    given, base = os.environ.get(FOLDER_VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return Path(given) if given else cache / "realm-jax" / "tables"


def size_class(size: int) -> int:
    """The power of two that holds a size: sizes of one class share an entry."""
    return 1 << (size - 1).bit_length()


@functools.cache
def _tables_of(folder: Path, kind: str) -> tuple[Table, ...]:
    """The tables for a kind of device; read once, since programs that were traced keep what they had."""
    paths = [*sorted(folder.glob("*.json")), *sorted(SHIPPED.glob("*.json"))]
    return tuple(table for table in map(read_table, paths) if fnmatch.fnmatchcase(kind, table.device_kind))


def _matching(table: Table, kernel: str, format: str, sizes: Mapping[str, int]) -> list[Entry]:
    """The entries for a shape, those that name most sizes first."""
    found = []
    for entry in table.entries:
        if (entry.kernel, entry.format) != (kernel, format):
            continue
        unknown = sorted(set(entry.sizes) - set(sizes))
        if unknown:
            raise _malformed(table.path, f"sizes of {kernel} must be among {', '.join(sizes)}, got {unknown[0]!r}")
        if all(size_class(sizes[name]) == size for name, size in entry.sizes.items()):
            found.append(entry)
    return sorted(found, key=lambda entry: -len(entry.sizes))


def _made(table: Table, entry: Entry, make: Callable[..., Config]) -> Config:
    try:
        return make(**entry.config)
    except (TypeError, ValueError) as error:
        raise _malformed(table.path, f"config of {entry.kernel} {entry.format}: {error}") from error


def read_table(path: Path) -> Table:
    """Read a file; ValueError that says what is wrong with it, and where."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _malformed(path, f"it must be JSON: {error}") from error
    _expect(path, "a table", content, {"device_kind": str, "made": str, "versions": dict, "entries": list})
    for entry in content["entries"]:
        _expect(path, "an entry", entry, {"kernel": str, "format": str, "sizes": dict, "config": dict}, {"facts": dict})
        for part in ("sizes", "config"):
            wrong = [value for value in entry[part].values() if type(value) is not int or value < 1]
            if wrong:
                raise _malformed(path, f"{part} must be positive integers, got {wrong[0]!r}")
        wrong = [size for size in entry["sizes"].values() if size != size_class(size)]
        if wrong:
            raise _malformed(path, f"sizes must be powers of two, got {wrong[0]}")
    entries = tuple(Entry(**entry) for entry in content.pop("entries"))
    return Table(path=path, entries=entries, **content)


def _expect(
    path: Path, what: str, found: Any, required: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> None:
    types = {**required, **(optional or {})}
    if not isinstance(found, dict) or not set(required) <= set(found) <= set(types):
        names = sorted(found) if isinstance(found, dict) else found
        raise _malformed(path, f"{what} must be an object with {', '.join(required)}, got {names!r}")
    for name, value in found.items():
        if not isinstance(value, types[name]):
            raise _malformed(path, f"{name} of {what} must be of type {types[name].__name__}, got {value!r}")


def _malformed(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is no table of block sizes: {why}; correct it, or delete it and tune again")


def write_table(table: Table) -> None:
    """Write a table to its path, an entry a line."""
    head = {name: getattr(table, name) for name in ("device_kind", "made", "versions")}
    lines = [json.dumps(dataclasses.asdict(entry)) for entry in table.entries]
    text = json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    table.path.parent.mkdir(parents=True, exist_ok=True)
    table.path.write_text(text, encoding="utf-8")
