"""Kernels for CPUs, arrays to arrays: C++ behind jax.ffi; imports jax and never realm_jax.

Importing the package loads nothing native: the library is found, checked and registered on the first call.
"""

from cpu_kernels.native import is_available, why_unavailable
from cpu_kernels.null_step import null_attention, null_matmul

__all__ = ["is_available", "null_attention", "null_matmul", "why_unavailable"]
