"""Kernels for CPUs, arrays to arrays: C++ behind jax.ffi; imports jax and never realm_jax.

Importing the package loads nothing native: the library is found, checked and registered on the first call.
"""

from cpu_kernels.argmax import argmax
from cpu_kernels.attention import AttentionOptions, paged_attention, rope_table
from cpu_kernels.blocks import attention_block, gated_mlp
from cpu_kernels.experts import MOST_EXPERTS, ClampedSwiGLU, mix_experts, route
from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.kv_cache import CACHE_KINDS, cache_dtype, cache_kind, cache_shape, unpack_cache
from cpu_kernels.matmul import quantized_matmul
from cpu_kernels.memory import Arena, read_memory
from cpu_kernels.native import available_instruction_sets, best_instruction_set, is_available, why_unavailable
from cpu_kernels.packing import pack
from cpu_kernels.profiling import HandlerTime, profile
from cpu_kernels.projection import GATES, Gate, PackedMatrix, Rms, activate, project, project_add, project_gated
from cpu_kernels.tile_kinds import CODEBOOKS, FORMATS, TILE_ROWS
from cpu_kernels.tiles import reference_matmul, take_rows, tiled_shape, unpack
from cpu_kernels.zeros import zeros

__all__ = [
    "CACHE_KINDS",
    "CODEBOOKS",
    "FORMATS",
    "GATES",
    "MOST_EXPERTS",
    "TILE_ROWS",
    "Arena",
    "AttentionOptions",
    "ClampedSwiGLU",
    "Gate",
    "HandlerTime",
    "InstructionSet",
    "PackedMatrix",
    "Rms",
    "activate",
    "argmax",
    "attention_block",
    "available_instruction_sets",
    "best_instruction_set",
    "cache_dtype",
    "cache_kind",
    "cache_shape",
    "gated_mlp",
    "is_available",
    "mix_experts",
    "pack",
    "paged_attention",
    "profile",
    "project",
    "project_add",
    "project_gated",
    "quantized_matmul",
    "read_memory",
    "reference_matmul",
    "rope_table",
    "route",
    "take_rows",
    "tiled_shape",
    "unpack",
    "unpack_cache",
    "why_unavailable",
    "zeros",
]
