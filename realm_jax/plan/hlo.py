"""Reads the text of a compiled XLA program: computations, their instructions, and how large what they make is."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

_BITS: Mapping[str, int] = MappingProxyType({"pred": 8, "token": 0, "opaque": 0})
_ARRAY = re.compile(r"(\w+)\[([\d,<= ]*)\](\{[^}]*\})?")
_NAME = r"%?([\w.\-]+)"
_HEAD = re.compile(rf"^(ENTRY )?{_NAME} .*\{{$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array: how many elements, the bits of each, and whether it lies in the device's main memory."""

    elements: int
    bits: int
    in_memory: bool = True

    @property
    def bytes(self) -> float:
        """The bytes that it takes in main memory; none where it lies elsewhere."""
        return self.elements * self.bits / 8 if self.in_memory else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation. `arrays`: what it makes; `operands`: by name; `rest`: what follows them."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str

    @property
    def bytes(self) -> float:
        """The bytes of what it makes."""
        return sum(array.bytes for array in self.arrays)

    @property
    def elements(self) -> int:
        """The elements of what it makes."""
        return sum(array.elements for array in self.arrays)

    def called(self, key: str) -> str | None:
        """The computation that it names as `key`."""
        found = re.search(rf"\b{key}={_NAME}", self.rest)
        return found[1] if found else None

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if listed:
            return tuple(name.strip().lstrip("%") for name in listed[1].split(","))
        return tuple(name for key in ("true_computation", "false_computation") if (name := self.called(key)))

    @property
    def trips(self) -> int | None:
        """How often a loop runs, where the compiler has found out."""
        found = re.search(r'"known_trip_count":\{"n":"?(\d+)"?\}', self.rest)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Computation:
    """Instructions in an order in which operands come first; `root` is the one whose result is returned."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {one.name: one for one in self.instructions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The computations of a module by name, and which of them is run."""

    computations: dict[str, Computation]
    entry: Computation


def read_program(text: str) -> Program:
    """Read the text of a module; ValueError where it has no entry."""
    found: dict[str, Computation] = {}
    entry, name, lines, is_entry = None, None, list[tuple[bool, Instruction]](), False
    for line in text.splitlines():
        head = None if line.startswith((" ", "}", "HloModule")) else _HEAD.match(line)
        if head:
            name, lines, is_entry = head[2], [], bool(head[1])
        elif line.startswith("}") and name is not None:
            instructions = tuple(one for _, one in lines)
            root = next((one for is_root, one in lines if is_root), instructions[-1])
            found[name] = Computation(name=name, instructions=instructions, root=root)
            entry, name = (found[name] if is_entry else entry), None
        elif name is not None and " = " in line:
            stripped = line.strip()
            lines.append((stripped.startswith("ROOT "), _instruction(stripped.removeprefix("ROOT "))))
    if entry is None:
        raise ValueError(f"the text of a compiled program must have an entry, got {text[:60]!r}")
    return Program(computations=found, entry=entry)


def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, of a tuple of shapes all of them, without the padding of tiled layouts."""
    return tuple(_array(*match.groups(default="")) for match in _ARRAY.finditer(shape))


def _instruction(line: str) -> Instruction:
    name, _, value = line.partition(" = ")
    shape = value[: _closing(value, 0) + 1] if value.startswith("(") else value.split(" ", 1)[0]
    call = value[len(shape) :].lstrip()
    opening = call.index("(")
    closing = _closing(call, opening)
    inside = call[opening + 1 : closing]
    opcode = call[:opening]
    return Instruction(
        name=name.strip().lstrip("%"),
        opcode=opcode,
        arrays=arrays_of(shape),
        operands=() if opcode in ("constant", "parameter", "iota") else tuple(re.findall(r"%([\w.\-]+)", inside)),
        literal=inside if len(inside) < 64 else "",
        rest=call[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(f"a parenthesis must close in {text[:80]!r}")


def _array(kind: str, dims: str, layout: str) -> Array:
    found = re.search(r"\d+", kind)
    bits = _BITS[kind] if kind in _BITS else int(found[0]) if found else 0
    # Memory space 0, which is not written, is the main memory; others are on the chip, or the host's.
    space = re.search(r"S\((\d+)\)", layout)
    elements = math.prod(int(size) for size in re.findall(r"\d+", dims))
    return Array(elements=elements, bits=bits, in_memory=space is None or space[1] == "0")
