"""Writes GGUF files field by field, from the format's definition alone, and remembers where each field lies."""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any

TYPES = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "B"),
    "str": (8, ""),
    "arr": (9, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}

Value = tuple[str, Any]
"""A type name and its payload; the payload of "arr" is (item type name, items), so that an item may be an array."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A number in the header: its name, where it lies and its `struct` letter."""

    name: str
    offset: int
    code: str


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write: `dims` in the file's order, `type` by number; `offset` None means after the one before."""

    name: str
    dims: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """The bytes of a file, its fields, its byte order and where its header ends."""

    data: bytes
    fields: tuple[Field, ...]
    order: str
    header_end: int

    def field(self, name: str) -> Field:
        """Return the field called `name`."""
        return next(field for field in self.fields if field.name == name)

    def patch(self, name: str, value: int) -> bytes:
        """Return the file with another number in one field."""
        return self.patch_field(self.field(name), value)

    def patch_field(self, field: Field, value: int) -> bytes:
        """Return the file with `value`, reduced to the field's width, in `field`."""
        width = struct.calcsize("<" + field.code)
        raw = (value % (1 << 8 * width)).to_bytes(width, "little" if self.order == "<" else "big")
        return self.data[: field.offset] + raw + self.data[field.offset + width :]


class Writer:
    """Appends the parts of a file in order."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.data = bytearray()
        self.fields: list[Field] = []

    def number(self, name: str, code: str, value: float) -> None:
        """Append one number and note it as a field."""
        self.fields.append(Field(name, len(self.data), code))
        self.data += struct.pack(self.order + code, value)

    def string(self, name: str, text: str | bytes) -> None:
        """Append a length and the bytes of a string."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        self.number(f"{name} length", "Q", len(raw))
        self.data += raw

    def payload(self, name: str, kind: str, value: Any) -> None:
        """Append a value without its type."""
        if kind == "arr":
            item_kind, items = value
            self.number(f"{name} item type", "I", TYPES[item_kind][0])
            self.number(f"{name} item count", "Q", len(items))
            for index, item in enumerate(items):
                self.payload(f"{name}[{index}]", item_kind, item)
        elif kind == "str":
            self.string(name, value)
        else:
            self.number(name, TYPES[kind][1], value)

    def metadata(self, index: int, key: str | bytes, kind: str, value: Any) -> None:
        """Append a key, its type and its value."""
        self.string(f"key {index}", key)
        self.number(f"key {index} type", "I", TYPES[kind][0])
        self.payload(f"value {index}", kind, value)

    def tensor(self, index: int, tensor: Tensor, offset: int) -> None:
        """Append the entry of a tensor."""
        name = f"tensor {index}"
        self.string(f"{name} name", tensor.name)
        self.number(f"{name} n_dims", "I", len(tensor.dims))
        for axis, dim in enumerate(tensor.dims):
            self.number(f"{name} dim {axis}", "Q", dim)
        self.number(f"{name} type", "I", tensor.type)
        self.number(f"{name} offset", "Q", offset)

    def pad(self, alignment: int) -> None:
        """Append zeros up to a multiple of `alignment`."""
        self.data += bytes(-len(self.data) % alignment)


def build(
    metadata: Sequence[tuple[str | bytes, Value]] = (),
    tensors: Sequence[Tensor] = (),
    *,
    alignment: int = 32,
    version: int = 3,
    order: str = "<",
) -> Image:
    """Write a whole file. An `alignment` other than 32 has to be among the metadata as well."""
    writer = Writer(order)
    writer.data += b"GGUF"
    writer.number("version", "I", version)
    writer.number("tensor count", "Q", len(tensors))
    writer.number("metadata count", "Q", len(metadata))
    for index, (key, (kind, value)) in enumerate(metadata):
        writer.metadata(index, key, kind, value)
    offsets = _offsets(tensors, alignment)
    for index, (tensor, offset) in enumerate(zip(tensors, offsets, strict=True)):
        writer.tensor(index, tensor, offset)
    header_end = len(writer.data)
    if tensors:
        writer.pad(alignment)
    base = len(writer.data)
    for tensor, offset in sorted(zip(tensors, offsets, strict=True), key=lambda pair: pair[1]):
        writer.data += bytes(max(0, base + offset - len(writer.data)))
        writer.data += tensor.data
    return Image(bytes(writer.data), tuple(writer.fields), order, header_end)


def _offsets(tensors: Sequence[Tensor], alignment: int) -> list[int]:
    offsets, end = [], 0
    for tensor in tensors:
        offset = -(-end // alignment) * alignment if tensor.offset is None else tensor.offset
        offsets.append(offset)
        end = offset + len(tensor.data)
    return offsets
