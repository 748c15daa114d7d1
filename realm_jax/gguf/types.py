"""The GGML tensor types and GGUF value types, with the sizes that the file format gives them."""

import enum
import struct


class GGMLType(enum.IntEnum):
    """How the weights of a tensor are stored; the number is the one in the file.

    Each row is stored in blocks of `block_size` weights, and each block takes `type_size` bytes.
    Source: `ggml_type` in ggml.h and the block structures in ggml-common.h.
    """

    block_size: int
    type_size: int

    def __new__(cls, value: int, block_size: int, type_size: int) -> "GGMLType":
        """Make a member that equals `value` and knows its block geometry."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.block_size = block_size
        member.type_size = type_size
        return member

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18


class ValueType(enum.IntEnum):
    """The type of a metadata value; `code` is the `struct` letter of a number, None for STRING and ARRAY."""

    code: str | None

    def __new__(cls, value: int, code: str | None) -> "ValueType":
        """Make a member that equals `value` and knows how a number of this type is unpacked."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.code = code
        return member

    UINT8 = 0, "B"
    INT8 = 1, "b"
    UINT16 = 2, "H"
    INT16 = 3, "h"
    UINT32 = 4, "I"
    INT32 = 5, "i"
    FLOAT32 = 6, "f"
    BOOL = 7, "B"
    STRING = 8, None
    ARRAY = 9, None
    UINT64 = 10, "Q"
    INT64 = 11, "q"
    FLOAT64 = 12, "d"

    @property
    def min_bytes(self) -> int:
        """The fewest bytes one value takes: a length for a string, an item type and a count for an array."""
        if self.code is not None:
            return struct.calcsize("<" + self.code)
        return 8 if self is ValueType.STRING else 12
