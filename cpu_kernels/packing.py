"""Packing of weights from GGML's blocks into the tiles that the kernels read."""

import concurrent.futures
import ctypes
import os

import numpy as np
from jaxtyping import UInt8

from cpu_kernels.native import library
from cpu_kernels.tiles import FORMATS, tiled_shape

__all__ = ["ScaleOverflowError", "pack"]

# XLA takes a host array of this alignment as it is, without a copy.
_ALIGNMENT = 64

# Below this many bytes, packing takes less time than starting threads.
_BYTES_OF_A_THREAD = 2**21


class ScaleOverflowError(ValueError):
    """A product of a block's scales exceeds float16, so that tiles cannot hold it."""


def pack(
    kind: str, blocks: UInt8[np.ndarray, "*lead row_bytes"], columns: int
) -> UInt8[np.ndarray, "*packed_lead tiles bytes"]:
    """Repack rows of blocks of the format `kind`, `[*lead, rows, row_bytes]`, into tiles `[*lead, tiles, bytes]`.

    `row_bytes` are the blocks of `columns` weights. The result is aligned for XLA; `unpack` says what it stands for.

    Raises:
        ValueError: the format has no tiles, or the blocks are not those of so many columns.
        ScaleOverflowError: a product of scales exceeds float16, which trained weights never come near.
        RuntimeError: the native library cannot be used.
    """
    *lead, rows, row_bytes = blocks.shape
    out = _aligned_empty(tiled_shape(kind, (*lead, rows, columns)))
    matrices = np.ascontiguousarray(blocks).reshape(-1, rows, row_bytes)
    for matrix, tiles in zip(matrices, out.reshape(-1, *out.shape[-2:]), strict=True):
        _pack_matrix(kind, matrix, columns, tiles)
    return out


def _pack_matrix(kind: str, blocks: np.ndarray, columns: int, tiles: np.ndarray) -> None:
    native, format_index = library(), list(FORMATS).index(kind)
    expected = native.realm_row_bytes(format_index, ctypes.c_int64(columns))
    if blocks.shape[1] != expected:
        raise ValueError(f"{columns} columns of {kind} must be {expected} bytes a row, got {blocks.shape[1]}")
    rows = len(blocks)

    def pack_range(first: int, last: int) -> bool:
        sizes = (ctypes.c_int64(n) for n in (rows, columns, first, last))
        source, target = (ctypes.c_void_p(array.ctypes.data) for array in (blocks, tiles))
        return native.realm_pack_tiles(format_index, source, *sizes, target)

    threads = max(1, min(_usable_cpus(), tiles.nbytes // _BYTES_OF_A_THREAD))
    cuts = [len(tiles) * i // threads for i in range(threads + 1)]
    if threads == 1:
        fits = pack_range(0, len(tiles))
    else:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            fits = all(pool.map(pack_range, cuts[:-1], cuts[1:]))
    if not fits:
        raise ScaleOverflowError(
            f"products of {kind} scales must stay within float16, those of these {rows} rows do not; "
            "multiply by their blocks through XLA"
        )


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
