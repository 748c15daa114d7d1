"""Reading memory and nothing else, as fast as the machine can: what products with weights are compared with."""

import ctypes

import numpy as np
from jaxtyping import Shaped

from cpu_kernels.native import library

__all__ = ["read_memory"]


def read_memory(array: Shaped[np.ndarray, "..."]) -> int:
    """The exclusive or of a contiguous array's 64-bit words, `np.bitwise_xor.reduce(array.reshape(-1).view("u8"))`.

    Raises:
        ValueError: the array is not contiguous, or its bytes are no multiple of 8.
        RuntimeError: the native library cannot be used.
    """
    if not array.flags.c_contiguous or array.nbytes % 8:
        raise ValueError(f"memory to read must be contiguous words of 8 bytes, got {array.nbytes} bytes")
    return library().realm_read_memory(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.nbytes // 8))
