"""Finds, checks and registers the shared library of CPU kernels, once a process and only when first asked."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from cpu_kernels.instruction_sets import InstructionSet

__all__ = [
    "available_instruction_sets",
    "best_instruction_set",
    "is_available",
    "library",
    "settings",
    "target",
    "why_unavailable",
]

_VERSIONS = ("realm_ffi_api_major", "realm_ffi_api_minor")

_SOURCES_DIGEST = "realm_sources_digest"

_HANDLERS = (
    "realm_argmax",
    "realm_attention_block",
    "realm_gated_mlp",
    "realm_mix_experts",
    "realm_paged_attention",
    "realm_project",
    "realm_quantized_matmul",
    "realm_rope_table",
    "realm_route",
    "realm_zeros",
)

# Names the instruction set that kernels run on, in the place of the best one.
_PREFERENCE = "REALM_INSTRUCTION_SET"

# What Python calls directly, and what it returns.
_FUNCTIONS = MappingProxyType(
    {
        "realm_best_instruction_set": ctypes.c_int32,
        "realm_has_instruction_set": ctypes.c_bool,
        "realm_prefer_instruction_set": None,
        "realm_start_profile": None,
        "realm_stop_profile": None,
        "realm_pack_tiles": None,
        "realm_read_memory": ctypes.c_uint64,
        "realm_row_bytes": ctypes.c_int64,
    }
)


@dataclass(frozen=True, kw_only=True)
class _Unavailable:
    reason: str


def is_available() -> bool:
    """Whether the native kernels were built, load, and fit the running jaxlib."""
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """What keeps the native kernels from being used, with its remedy; None when they can be used."""
    loaded = _load()
    return loaded.reason if isinstance(loaded, _Unavailable) else None


def target(name: str) -> str:
    """Return the name under which the handler is registered with XLA, registering all handlers on the first call.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    _register(library(name))
    return name


def settings(*values: int | float) -> dict[str, np.ndarray]:
    """What of a call is static, as the one attribute that src/settings.h reads; floats as the bits of float32."""
    bits = [int(np.float32(v).view(np.uint32)) if isinstance(v, float) else int(v) for v in values]
    return {"settings": np.array(bits, np.int64)}


def library(purpose: str = "them") -> ctypes.CDLL:
    """Return the loaded library, for functions that are called without XLA; the error names the `purpose`.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    loaded = _load()
    if isinstance(loaded, _Unavailable):
        raise RuntimeError(f"native CPU kernels must be available to call {purpose}: {loaded.reason}")
    return loaded


def available_instruction_sets() -> tuple[InstructionSet, ...]:
    """The instruction sets whose kernels this CPU can run, from the plainest to the best.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    return _available_sets(library())


def best_instruction_set() -> InstructionSet:
    """What kernels run on when they are called for `InstructionSet.BEST`.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    return InstructionSet(library().realm_best_instruction_set())


@functools.cache
def _load() -> ctypes.CDLL | _Unavailable:
    path = _library_path()
    if path is None:
        return _Unavailable(reason="realm-jax is not installed, its sources are merely imported; install it with pip")
    if not path.is_file():
        return _Unavailable(reason=f"{path.name} was not built; install a C++ compiler, then reinstall realm-jax")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return _Unavailable(reason=f"{path} cannot be loaded ({error}); reinstall realm-jax on this machine")
    if not _has_sources(library, Path(__file__).with_name("src")):
        return _Unavailable(
            reason=f"{path} was built from another version of the sources than {__file__}; reinstall realm-jax "
            "(in a checkout: make .venv/.installed, or pip install .)"
        )
    major, minor = (getattr(library, name)() for name in _VERSIONS)
    mismatch = _version_mismatch((major, minor), _running_ffi_version(Path(jax.ffi.include_dir())))
    if mismatch is not None:
        return _Unavailable(reason=mismatch)
    for name, result in _FUNCTIONS.items():
        getattr(library, name).restype = result
    _prefer_named_set(library)
    return library


def _has_sources(library: ctypes.CDLL, folder: Path) -> bool:
    """Whether the library has what Python calls, and was built from the sources in the folder where there are any."""
    if not all(hasattr(library, name) for name in (_SOURCES_DIGEST, *_VERSIONS, *_HANDLERS, *_FUNCTIONS)):
        return False
    built_from = getattr(library, _SOURCES_DIGEST)
    built_from.restype = ctypes.c_char_p
    return not folder.is_dir() or built_from().decode() == _sources_digest(folder)


def _sources_digest(folder: Path) -> str:
    """Return what CMakeLists.txt computes of the library's sources: calls and tiles are of one version with them.

    A wheel, whose Python files and library come from one build, has no sources in it.
    """
    sources = sorted((path for path in folder.iterdir() if path.suffix in (".cc", ".h")), key=lambda path: path.name)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sources]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _available_sets(library: ctypes.CDLL) -> tuple[InstructionSet, ...]:
    return tuple(s for s in InstructionSet if s != InstructionSet.BEST and library.realm_has_instruction_set(s))


def _prefer_named_set(library: ctypes.CDLL) -> None:
    """Make the set that the environment names the one that kernels run on.

    Raises:
        ValueError: this CPU has no such set.
    """
    name = os.environ.get(_PREFERENCE)
    if not name:
        return
    sets = {s.name.lower(): s for s in _available_sets(library)}
    if name.lower() not in sets:
        raise ValueError(f"{_PREFERENCE} is {name!r}, but kernels run here on: {', '.join(sets)}; name one or unset it")
    library.realm_prefer_instruction_set(sets[name.lower()])


# Two threads may both get here first. Registering the same address again under the same name changes nothing.
@functools.cache
def _register(library: ctypes.CDLL) -> None:
    for name in _HANDLERS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def _library_path() -> Path | None:
    """Return where an installation puts the library; in an editable one that is not the folder of this file."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        installed = importlib.metadata.distribution("realm-jax")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(installed.locate_file(f"cpu_kernels/libcpu_kernels.{suffix}")))


def _running_ffi_version(include: Path) -> tuple[int, int] | None:
    """Return the FFI API version of the running jaxlib, which states it only in the headers that it installs."""
    header = include / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    text = header.read_text(encoding="utf-8")
    parts = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    major, minor = (int(match[1]) if match else None for match in parts)
    return None if major is None or minor is None else (major, minor)


def _version_mismatch(built: tuple[int, int], running: tuple[int, int] | None) -> str | None:
    """Say why a library built against one FFI API version cannot run under another; None when it can.

    XLA does not refuse a library that is newer than itself: the first operation after registration fails instead.
    """
    if running is None:
        return "the running jaxlib does not state its FFI API version; install a jax that realm-jax supports"
    if built[0] == running[0] and built[1] <= running[1]:
        return None
    needed, given = (".".join(map(str, version)) for version in (built, running))
    return (
        f"the library needs FFI API {needed} and the running jaxlib has {given}; install a jax that realm-jax supports"
    )
