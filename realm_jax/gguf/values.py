"""Metadata values: numbers, strings and arrays, read without copying what can stay in the file."""

import mmap
import operator
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np

from realm_jax.gguf.cursor import Cursor
from realm_jax.gguf.types import ValueType

MAX_ARRAY_DEPTH = 4
_STRIDE = 16
# A corrupt length can make a string of megabytes, which takes up to four times as much memory once decoded.
_EAGER_STRING_BYTES = 64


def _decode(buffer: mmap.mmap, start: int, end: int) -> str:
    """Return bytes `start` to `end` as text; invalid UTF-8 becomes lone surrogates, as os.fsdecode does."""
    return buffer[start:end].decode("utf-8", "surrogateescape")


class StringArray(Sequence[str]):
    """An array of strings that stays in the file and is decoded item by item.

    The start of every 16th string is kept, so an index costs at most 15 steps; iteration decodes all of them at once.

        | u64 length | bytes | u64 length | bytes | ...
    """

    __slots__ = ("_buffer", "_count", "_length_at", "_length_type", "_starts")

    def __init__(self, buffer: mmap.mmap, order: str, count: int, starts: array) -> None:
        """Wrap `count` strings whose bounds were checked; `starts` holds the offset of every 16th length field."""
        self._buffer = buffer
        self._count = count
        self._length_at = struct.Struct(order + "Q").unpack_from
        self._length_type = np.dtype(order + "u8")
        self._starts = starts

    def __len__(self) -> int:
        """Return the number of strings."""
        return self._count

    def __iter__(self) -> Iterator[str]:
        """Decode all strings, then iterate."""
        return iter(self._decode_all())

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        """Decode one string, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        position = operator.index(index)
        if position < 0:
            position += self._count
        if not 0 <= position < self._count:
            raise IndexError(f"index must be in [-{self._count}, {self._count}), got {index}")
        return next(self._decode_from(position))

    def __repr__(self) -> str:
        """Show the count and the first strings."""
        head = ", ".join(repr(self[i]) for i in range(min(3, self._count)))
        return f"StringArray({self._count} strings: {head}{', ...' if self._count > 3 else ''})"

    def _decode_all(self) -> list[str]:
        """The strings, ten times as fast as one by one: joined by a character that none of them has, then split."""
        if not self._count:
            return []
        starts = self._all_starts()
        begin, end = int(starts[0]), int(starts[-1]) + 8 + int(self._lengths(starts[-1:])[0])
        joined = np.frombuffer(self._buffer, np.uint8, end - begin, begin).copy()
        kept = np.ones(len(joined), np.bool_)
        for byte in range(8):
            kept[starts - begin + byte] = False
        if not joined[kept].all():
            return list(self._decode_from(0))
        joined[starts - begin + 7] = 0
        kept[starts - begin + 7] = True
        return joined[kept].tobytes().decode("utf-8", "surrogateescape").split("\0")[1:]

    def _all_starts(self) -> np.ndarray:
        """The offset of every string's length field, found from all kept ones side by side."""
        kept = np.array(self._starts, np.int64)
        rows = np.empty((_STRIDE, len(kept)), np.int64)
        rows[0] = kept
        for i in range(1, _STRIDE):
            # Behind the last string of all there may be anything, or the end of the file.
            last = min(len(kept), -(-(self._count - i) // _STRIDE))
            rows[i, :last] = rows[i - 1, :last] + 8 + self._lengths(rows[i - 1, :last])
        return rows.T.reshape(-1)[: self._count]

    def _lengths(self, starts: np.ndarray) -> np.ndarray:
        """The length fields at these offsets, as int64: every length was checked against the file's size."""
        fields = np.ndarray((len(self._buffer) - 7,), self._length_type, self._buffer, strides=(1,))
        return fields[starts].astype(np.int64)

    def _decode_from(self, index: int) -> Iterator[str]:
        buffer, length_at = self._buffer, self._length_at
        if index >= self._count:
            return
        position = self._starts[index // _STRIDE]
        for _ in range(index % _STRIDE):
            position += 8 + length_at(buffer, position)[0]
        for _ in range(index, self._count):
            start = position + 8
            position = start + length_at(buffer, position)[0]
            yield _decode(buffer, start, position)


class Metadata(Mapping[str, Any]):
    """The metadata of a file in its order; long strings are decoded when they are asked for."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        """Wrap `values`, in which a callable stands for the string that it returns."""
        self._values = values

    def __getitem__(self, key: str) -> Any:
        """Return the value of `key`."""
        value = self._values[key]
        return value() if callable(value) else value

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._values)

    def __repr__(self) -> str:
        """Show the number of keys."""
        return f"Metadata({len(self)} keys)"


class ValueReader:
    """Reads metadata values at a cursor; `budget` bounds how many Python objects one file may make."""

    def __init__(self, cursor: Cursor, budget: int) -> None:
        """Read from `cursor` at most `budget` values, nested arrays included."""
        self._cursor = cursor
        self._budget = budget

    def read(self, field: str, depth: int = 0) -> Any | Callable[[], str]:
        """Read a value type and the value; a long string comes back as a callable that decodes it."""
        kind = self._value_type(f"the type of {field}")
        if kind is ValueType.ARRAY:
            return self._array(field, depth)
        if kind is ValueType.STRING:
            return self._string(field)
        return self._scalar(kind, field)

    def _value_type(self, field: str) -> ValueType:
        cursor = self._cursor
        at = cursor.position
        number = cursor.integer("I", field)
        try:
            return ValueType(number)
        except ValueError:
            raise cursor.error(field, f"must be 0 to {max(ValueType):d}, got {number}", at) from None

    def _scalar(self, kind: ValueType, field: str) -> int | float | bool:
        assert kind.code is not None
        at = self._cursor.position
        value = self._cursor.number(kind.code, field)
        if kind is not ValueType.BOOL:
            return value
        if value > 1:
            raise self._cursor.error(field, f"must be 0 or 1 as a boolean, got {value}", at)
        return bool(value)

    def _string(self, field: str) -> str | Callable[[], str]:
        buffer = self._cursor.buffer
        start, end = self._cursor.span(field)
        if end - start <= _EAGER_STRING_BYTES:
            return _decode(buffer, start, end)
        return lambda: _decode(buffer, start, end)

    def _array(self, field: str, depth: int) -> np.ndarray | StringArray | tuple[Any, ...]:
        cursor = self._cursor
        if depth == MAX_ARRAY_DEPTH:
            raise cursor.error(field, f"nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind = self._value_type(f"the item type of {field}")
        count = cursor.count("Q", f"the item count of {field}", kind.min_bytes)
        if kind is ValueType.ARRAY:
            return self._nested(field, count, depth)
        if kind is ValueType.STRING:
            return self._strings(field, count)
        return self._numbers(kind, field, count)

    def _nested(self, field: str, count: int, depth: int) -> tuple[Any, ...]:
        if count > self._budget:
            raise self._cursor.error(field, f"must hold at most {self._budget} further arrays, got {count}")
        self._budget -= count
        return tuple(self._array(f"{field}[{i}]", depth + 1) for i in range(count))

    def _numbers(self, kind: ValueType, field: str, count: int) -> np.ndarray:
        assert kind.code is not None
        cursor = self._cursor
        dtype = np.dtype(cursor.order + kind.code)
        start = cursor.advance(count * dtype.itemsize, field)
        numbers = np.frombuffer(cursor.buffer, dtype, count, start)
        if kind is ValueType.BOOL:
            if count and numbers.max() > 1:
                raise cursor.error(field, f"must hold 0 or 1 as booleans, got {numbers.max()}", start)
            return numbers.view(np.bool_)
        if dtype.isnative:
            return numbers
        native = numbers.astype(dtype.newbyteorder("="))
        native.flags.writeable = False
        return native

    def _strings(self, field: str, count: int) -> StringArray:
        cursor = self._cursor
        buffer, size, position = cursor.buffer, cursor.size, cursor.position
        length_at = struct.Struct(cursor.order + "Q").unpack_from
        starts = array("q")
        last = size - 8
        for first in range(0, count, _STRIDE):
            starts.append(position)
            for index in range(first, min(first + _STRIDE, count)):
                at = position
                if at <= last:
                    position = at + 8 + length_at(buffer, at)[0]
                if position > size or at > last:
                    raise cursor.truncated(f"the length of {field}[{index}]", "reaches past the end of the file", at)
        cursor.position = position
        return StringArray(buffer, cursor.order, count, starts)
