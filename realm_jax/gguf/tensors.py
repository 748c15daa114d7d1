"""Tensor descriptions and their bytes: checked against the file before a view is made."""

import dataclasses
import math
import mmap
from collections.abc import Sequence
from typing import Self

import numpy as np

from realm_jax.gguf.cursor import Cursor
from realm_jax.gguf.errors import GGUFError, show
from realm_jax.gguf.types import GGMLType

MAX_DIMS = 4
MAX_NAME_BYTES = 65_535
MAX_BYTES = 2**63 - 1
_REMEDY_TYPE = "convert the model to one of the types F32 to Q1_0, or use a release that knows this type"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """A tensor as the file stores it.

    `shape` is in numpy order (last axis contiguous: the dimensions of the file reversed), in weights.
    `view` is uint8[nbytes], a read-only view of the mapped file, from byte `start` of `mapping`; None where the file
    was opened for its header alone.
    """

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    view: np.ndarray | None
    mapping: mmap.mmap | None = None
    start: int = 0

    @property
    def data(self) -> np.ndarray:
        """The bytes, uint8[nbytes]; GGUFError where the file was opened for its header alone."""
        if self.view is None:
            raise GGUFError(
                f"tensor {show(self.name)} has no data: its file was opened for its header alone; "
                "open the whole file without header_only"
            )
        return self.view

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file, whether they are here or not."""
        return _bytes_of(self.ggml_type, self.shape)

    def rows(self, first: int, last: int) -> Self:
        """The part of a tensor that rows `first` to `last - 1` of its first axis make; a view too."""
        size = self.nbytes // self.shape[0]
        view = self.data[first * size : last * size]
        return dataclasses.replace(
            self, shape=(last - first, *self.shape[1:]), view=view, start=self.start + first * size
        )

    def read_ahead(self) -> None:
        """Ask the system to read these bytes from the file, and go on meanwhile."""
        self._advise("MADV_WILLNEED")

    def release(self) -> None:
        """Give back the memory that holds these bytes; the system reads them from the file again if they are used."""
        self._advise("MADV_DONTNEED")

    def _advise(self, advice: str) -> None:
        """Advise the system on all pages that hold any of the bytes."""
        if self.mapping is not None and hasattr(mmap, advice):
            first = self.start // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(getattr(mmap, advice), first, self.start + self.nbytes - first)


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in the header; `offset` counts from the data section, `entry` is where the entry starts."""

    name: str
    ggml_type: GGMLType
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    entry: int


def _bytes_of(ggml_type: GGMLType, shape: Sequence[int]) -> int:
    return math.prod(shape) // ggml_type.block_size * ggml_type.type_size


def read_tensor_info(cursor: Cursor, index: int, limit: int) -> TensorInfo:
    """Read entry `index` and check all of it that needs no other entry; no tensor may be larger than `limit` bytes.

    | u64 length, name | u32 n_dims | n_dims * u64 dim | u32 type | u64 offset |
    """
    entry = cursor.position
    name = cursor.name_string(f"the name of tensor {index}", MAX_NAME_BYTES)
    dims = _read_dims(cursor, name)
    ggml_type = _read_type(cursor, name)
    row = dims[0] if dims else 1
    if row % ggml_type.block_size:
        rule = f"must be a multiple of {ggml_type.block_size}, the block size of {ggml_type.name}, got {row}"
        raise cursor.error(f"the row length of tensor {show(name)}", rule, entry)
    nbytes = _bytes_of(ggml_type, dims)
    if nbytes > limit:
        raise cursor.error(
            f"the shape {dims} of tensor {show(name)}", f"needs {nbytes} bytes, but {_has(cursor, limit)}", entry
        )
    offset = cursor.integer("Q", f"the offset of tensor {show(name)}")
    return TensorInfo(name, ggml_type, dims[::-1], nbytes, offset, entry)


def _has(cursor: Cursor, limit: int) -> str:
    return f"the file has {limit}" if limit == cursor.size else f"no file has more than {limit}"


def _read_dims(cursor: Cursor, name: str) -> tuple[int, ...]:
    field = f"the number of dimensions of tensor {show(name)}"
    n_dims = cursor.count("I", field, 8, MAX_DIMS)
    dims = []
    for axis in range(n_dims):
        at = cursor.position
        dim = cursor.integer("q", f"dimension {axis} of tensor {show(name)}")
        if dim < 1:
            raise cursor.error(f"dimension {axis} of tensor {show(name)}", f"must be at least 1, got {dim}", at)
        dims.append(dim)
    return tuple(dims)


def _read_type(cursor: Cursor, name: str) -> GGMLType:
    at = cursor.position
    number = cursor.integer("I", f"the type of tensor {show(name)}")
    try:
        return GGMLType(number)
    except ValueError:
        field = f"the type of tensor {show(name)}"
        raise cursor.error(field, f"must be a known GGML type, got {number}", at, _REMEDY_TYPE) from None


def map_tensors(
    cursor: Cursor, infos: Sequence[TensorInfo], alignment: int, *, header_only: bool
) -> dict[str, RawTensor]:
    """Check that the tensors lie aligned, apart and inside the file, and return a view of each.

    The data section starts at the first multiple of `alignment` at or after the cursor. With `header_only` it need not
    be there, and nothing of it is mapped.
    """
    base = -(-cursor.position // alignment) * alignment
    _check_places(cursor, infos, alignment, base, MAX_BYTES if header_only else cursor.size)
    whole = None if header_only else np.frombuffer(cursor.buffer, np.uint8)
    tensors: dict[str, RawTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.error(f"the name of tensor {show(info.name)}", "appears twice", info.entry)
        start = base + info.offset
        view = None if whole is None else whole[start : start + info.nbytes]
        mapping = None if header_only else cursor.buffer
        tensors[info.name] = RawTensor(info.name, info.ggml_type, info.shape, view, mapping, start)
    return tensors


def _check_places(cursor: Cursor, infos: Sequence[TensorInfo], alignment: int, base: int, limit: int) -> None:
    """Raise where tensors of a data section that starts at `base` are not aligned, overlap, or end after `limit`."""
    end, before = base, "the header"
    for info in sorted(infos, key=lambda info: info.offset):
        field, start = f"the offset of tensor {show(info.name)}", base + info.offset
        if info.offset % alignment:
            raise cursor.error(field, f"must be a multiple of {alignment}, got {info.offset}", info.entry)
        if start < end:
            raise cursor.error(field, f"overlaps {before}, which ends at byte {end}, got {start}", info.entry)
        end, before = start + info.nbytes, f"tensor {show(info.name)}"
        if end > limit:
            raise cursor.error(
                f"the data of tensor {show(info.name)}",
                f"must end at byte {end}, but {_has(cursor, limit)} bytes",
                start,
            )
