"""Kernels for CPUs, arrays to arrays: C++ behind jax.ffi; imports jax and never realm_jax.

Importing the package loads nothing native: the library is found, checked and registered on the first call.
"""

from cpu_kernels.matmul import InstructionSet, available_instruction_sets, quantized_matmul
from cpu_kernels.memory import read_memory
from cpu_kernels.native import is_available, why_unavailable
from cpu_kernels.null_step import null_attention, null_matmul
from cpu_kernels.packing import pack
from cpu_kernels.tile_kinds import CODEBOOKS, FORMATS
from cpu_kernels.tiles import reference_matmul, take_rows, tiled_shape, unpack

__all__ = [
    "CODEBOOKS",
    "FORMATS",
    "InstructionSet",
    "available_instruction_sets",
    "is_available",
    "null_attention",
    "null_matmul",
    "pack",
    "quantized_matmul",
    "read_memory",
    "reference_matmul",
    "take_rows",
    "tiled_shape",
    "unpack",
    "why_unavailable",
]
