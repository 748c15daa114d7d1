"""Memory as kernels read it best: aligned, in large pieces; and reading it with nothing else to do, to compare with."""

import ctypes
import math

import numpy as np
from jaxtyping import Shaped, UInt8

from cpu_kernels.native import library

__all__ = ["Arena", "read_memory"]

# XLA takes a host array of this alignment as it is, without a copy.
_ALIGNMENT = 64


class Arena:
    """Cuts many arrays out of few large pieces of memory, one after the other.

    The system backs large pieces with huge pages where it may, and small ones never do: a stream of weights in pages of
    4 KiB waits for the translation of each. A piece lives as long as one of its arrays.
    """

    def __init__(self, piece_bytes: int = 2**26) -> None:
        """Take pieces of at least so many bytes from the system, each when it is needed."""
        self._piece_bytes = piece_bytes
        self._piece = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """An array of this shape with nothing in particular in it, aligned for XLA."""
        size = math.prod(shape)
        start = -self._piece.ctypes.data % _ALIGNMENT
        if start + size > self._piece.size:
            # numpy asks for huge pages where it allocates 4 MiB or more.
            self._piece = np.empty(max(self._piece_bytes, size + _ALIGNMENT), np.uint8)
            start = -self._piece.ctypes.data % _ALIGNMENT
        array = self._piece[start : start + size].reshape(shape)
        self._piece = self._piece[start + size :]
        return array


def read_memory(array: Shaped[np.ndarray, "..."]) -> int:
    """The exclusive or of a contiguous array's 64-bit words, `np.bitwise_xor.reduce(array.reshape(-1).view("u8"))`.

    Raises:
        ValueError: the array is not contiguous, or its bytes are no multiple of 8.
        RuntimeError: the native library cannot be used.
    """
    if not array.flags.c_contiguous or array.nbytes % 8:
        raise ValueError(f"memory to read must be contiguous words of 8 bytes, got {array.nbytes} bytes")
    return library().realm_read_memory(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.nbytes // 8))
