"""Runs the PTX instructions of the kernels' inline assembly on arrays of registers, as the PTX manual defines them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

Registers = dict[str, np.ndarray]


def run(assembly: str, inputs: Mapping[str, np.ndarray]) -> Registers:
    """All registers after a block `{ ... }` of instructions; `inputs` are uint32 arrays `[threads]` by name."""
    shape = next(iter(inputs.values())).shape
    lane = np.uint32(1) << np.arange(shape[0], dtype=np.uint32) % 32
    registers: Registers = {**inputs, "%lanemask_eq": lane, "%lanemask_lt": lane - np.uint32(1)}
    for statement in assembly.strip()[1:-1].split(";"):
        name, _, rest = statement.strip().partition(" ")
        if not name or name == ".reg":
            continue
        if "{" in rest:
            _split_halves(rest, registers)
            continue
        target, *sources = (operand.strip() for operand in rest.split(","))
        values = [_value(source, registers, shape) for source in sources]
        registers[target] = _INSTRUCTIONS[name](*values)
    return registers


def _value(operand: str, registers: Registers, shape: tuple[int, ...]) -> np.ndarray:
    if re.fullmatch(r"0x[0-9A-Fa-f]+|\d+", operand):
        return np.full(shape, int(operand, 0), np.uint32)
    return registers[operand]


def _split_halves(rest: str, registers: Registers) -> None:
    """`mov.b32 {low, high}, source`."""
    low, high, source = re.fullmatch(r"\{(\w+), (\w+)\}, (\S+)", rest).groups()  # type: ignore[union-attr]
    registers[low], registers[high] = registers[source] & 0xFFFF, registers[source] >> 16


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four bytes of the eight of b:a; a selector's fourth bit spreads the byte's sign instead."""
    joined = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros_like(a)
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = (joined >> (8 * (nibble & 7)).astype(np.uint64)).astype(np.uint32) & 0xFF
        signs = np.where(byte >= 0x80, np.uint32(0xFF), np.uint32(0))
        out |= np.where(nibble >= 8, signs, byte) << 8 * i
    return out


def _lookup(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The bitwise function of three operands whose value for bits (x, y, z) is bit 4 x + 2 y + z of the table."""
    out = np.zeros_like(a)
    for bits in range(8):
        chosen = [word if bits >> place & 1 else ~word for word, place in ((a, 2), (b, 1), (c, 0))]
        out |= np.where(table >> bits & 1, chosen[0] & chosen[1] & chosen[2], 0).astype(np.uint32)
    return out


def _pairwise_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Two bfloat16 products plus addends, each rounded once: float64 holds such sums exactly."""
    out = np.zeros_like(a)
    for shift in (0, 16):
        x, y, z = ((word >> shift).astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64) for word in (a, b, c))
        out |= (x * y + z).astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32) << shift
    return out


_INSTRUCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "sub.u32": np.subtract,
    "shl.b32": np.left_shift,
    "shr.b32": np.right_shift,
    "prmt.b32": _permute,
    "lop3.b32": _lookup,
    "fma.rn.bf16x2": _pairwise_fma,
    "cvt.f32.f16": lambda a: a.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32),
}
