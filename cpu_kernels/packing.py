"""Packing of weights from GGML's blocks into the tiles that the kernels read."""

import concurrent.futures
import ctypes
import os

import numpy as np
from jaxtyping import UInt8

from cpu_kernels.memory import Arena
from cpu_kernels.native import library
from cpu_kernels.tile_kinds import CODEBOOKS, FORMATS
from cpu_kernels.tiles import tiled_shape

__all__ = ["pack"]

# Below this many bytes, packing takes less time than starting threads.
_BYTES_OF_A_THREAD = 2**21


def pack(
    kind: str,
    blocks: UInt8[np.ndarray, "*lead row_bytes"],
    columns: int,
    codebook: UInt8[np.ndarray, "points coordinates"] | None = None,
    arena: Arena | None = None,
) -> UInt8[np.ndarray, "*packed_lead tiles bytes"]:
    """Repack rows of blocks of the format `kind`, `[*lead, rows, row_bytes]`, into tiles `[*lead, tiles, bytes]`.

    `row_bytes` are the blocks of `columns` weights. The result is aligned for XLA, a part of the `arena` where one is
    given; `unpack` says what it stands for.
    IQ1, IQ2 and IQ3 need their `codebook`: the coordinates of its points by index, each as the number of its value
    among the codebook's ascending values.

    Raises:
        ValueError: the format has no tiles, the blocks are not those of so many columns, or the codebook is another's.
        RuntimeError: the native library cannot be used.
    """
    *lead, rows, row_bytes = blocks.shape
    out = (arena or Arena(0)).empty(tiled_shape(kind, (*lead, rows, columns)))
    given, needed = None if codebook is None else codebook.shape, CODEBOOKS.get(kind)
    if given != needed:
        raise ValueError(f"the codebook of {kind} must have the shape {needed}, got {given}")
    points = np.ascontiguousarray(np.zeros((1, 1), np.uint8) if codebook is None else codebook)
    matrices = np.ascontiguousarray(blocks).reshape(-1, rows, row_bytes)
    for matrix, tiles in zip(matrices, out.reshape(-1, *out.shape[-2:]), strict=True):
        _pack_matrix(kind, matrix, columns, points, tiles)
    return out


def _pack_matrix(kind: str, blocks: np.ndarray, columns: int, codebook: np.ndarray, tiles: np.ndarray) -> None:
    native, format_index = library(), list(FORMATS).index(kind)
    expected = native.realm_row_bytes(format_index, ctypes.c_int64(columns))
    if blocks.shape[1] != expected:
        raise ValueError(f"{columns} columns of {kind} must be {expected} bytes a row, got {blocks.shape[1]}")

    def pack_range(first: int, last: int) -> None:
        sizes = (ctypes.c_int64(n) for n in (len(blocks), columns, first, last))
        source, points, target = (ctypes.c_void_p(array.ctypes.data) for array in (blocks, codebook, tiles))
        native.realm_pack_tiles(format_index, source, points, *sizes, target)

    threads = max(1, min(_usable_cpus(), tiles.nbytes // _BYTES_OF_A_THREAD))
    cuts = [len(tiles) * i // threads for i in range(threads + 1)]
    if threads == 1:
        pack_range(0, len(tiles))
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(pack_range, cuts[:-1], cuts[1:]))


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
