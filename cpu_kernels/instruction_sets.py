"""The instruction sets that kernels are compiled for."""

from enum import IntEnum

__all__ = ["InstructionSet"]


class InstructionSet(IntEnum):
    """What a kernel may be compiled for, numbered as in src/kernels.h.

    `BEST` is the best one that the CPU has, found when the kernel runs, or the one that the environment variable
    REALM_INSTRUCTION_SET names, such as `avx512_vnni`. `AMX` is AVX-512 VNNI with a matrix unit for many rows. `NULL`
    computes nothing: a call takes its operands and returns zeros, which shows what it costs beside its arithmetic.
    """

    BEST = 0
    PORTABLE = 1
    AVX2 = 2
    AVX_VNNI = 3
    AVX512_VNNI = 4
    AMX = 5
    NEON_DOTPROD = 6
    NULL = 255
