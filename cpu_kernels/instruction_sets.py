"""The instruction sets that kernels are compiled for, and which of them the running CPU has."""

from enum import IntEnum

from cpu_kernels.native import has_instruction_set

__all__ = ["InstructionSet", "available_instruction_sets"]


class InstructionSet(IntEnum):
    """What a kernel may be compiled for, numbered as in src/kernels.h.

    `BEST` is the best one that the CPU has, found when the kernel runs. `NULL` computes nothing: a call takes its
    operands and returns zeros, which shows what it costs beside its arithmetic.
    """

    BEST = 0
    PORTABLE = 1
    AVX2 = 2
    AVX512_VNNI = 3
    NEON_DOTPROD = 4
    NULL = 255


def available_instruction_sets() -> tuple[InstructionSet, ...]:
    """The instruction sets whose kernels this CPU can run, from the plainest to the best."""
    return tuple(s for s in InstructionSet if s != InstructionSet.BEST and has_instruction_set(s))
