"""Layouts of quantised weights: how each is packed from a file's blocks, decoded, and looked up by row.

`blocks`: the file's own, `uint8[*lead, rows, blocks, block_bytes]`, for every type.
`cpu`: tiles of the native CPU kernels, `uint8[*lead, tiles, tile_bytes]`, for the types of `cpu_kernels.FORMATS`.
`triton`, `tpu`: planes of codes and words of scales, a tuple of arrays, for the types of
`pallas_kernels.quantized_matmul.FORMATS`; `pallas_kernels/quantized_matmul/layouts.py` has the bytes.
`mps`: MLX's codes, scales and biases, a tuple of three arrays, for the types of `realm_jax.quant.affine.FORMATS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cpu_kernels
from pallas_kernels import quantized_matmul as pallas
from pallas_kernels.case import Backend
from realm_jax.gguf import GGMLType
from realm_jax.quant import affine, codebooks
from realm_jax.quant.blocks import decode_blocks

Matrix = tuple[int, int]
"""Rows and columns of the matrices along a tensor's last two axes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to store weights `[*lead, rows, columns]` as an array or a tuple of arrays, each with the same lead.

    `holds(type, shape)` says which weights it can store, `stored` the shapes and dtypes, `pack` makes them from the
    bytes of the file, in an arena if one is given and the layout is the CPU's. `unpack(data, type, matrix)` gives
    float32 `[*lead, rows, columns]`, and `take_rows(data, type, matrix, ids)` rows of a single matrix; both are jnp.

    For meshes, `units(type, shape)` says into how many pieces each axis of a weight can be cut, None: into none.
    `spread(type, values, fill)` gives for each of its arrays the values of the weight's axes in the order of its own,
    and `fill` for axes that are never cut. `apart`: parts of rows or columns are packed one by one, each filled up by
    itself, and lie one after the other in the arrays.
    """

    holds: Callable[[GGMLType, tuple[int, ...]], bool]
    stored: Callable[[GGMLType, tuple[int, ...]], Any]
    pack: Callable[[np.ndarray, GGMLType, tuple[int, ...], cpu_kernels.Arena | None], Any]
    unpack: Callable[[Any, GGMLType, Matrix], jax.Array]
    take_rows: Callable[[Any, GGMLType, Matrix, jax.Array], jax.Array]
    spread: Callable[[GGMLType, Sequence[Any], Any], list[tuple[Any, ...]]]
    units: Callable[[GGMLType, tuple[int, ...]], tuple[int, ...]] | None = None
    apart: bool = False


def _block_shape(kind: GGMLType, shape: tuple[int, ...]) -> tuple[int, ...]:
    *lead, columns = shape
    return (*lead, columns // kind.block_size, kind.type_size)


def _stored_blocks(kind: GGMLType, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(_block_shape(kind, shape), jnp.uint8)


def _view_blocks(data: np.ndarray, kind: GGMLType, shape: tuple[int, ...], _: cpu_kernels.Arena | None) -> np.ndarray:
    return data.reshape(_block_shape(kind, shape))


def _unpack_blocks(data: jax.Array, kind: GGMLType, matrix: Matrix) -> jax.Array:
    return decode_blocks(kind, data).reshape(*data.shape[:-2], matrix[1])


def _take_block_rows(data: jax.Array, kind: GGMLType, matrix: Matrix, ids: jax.Array) -> jax.Array:
    return _unpack_blocks(jnp.take(data, ids, axis=0, mode="clip"), kind, matrix)


def _spread_blocks(kind: GGMLType, values: Sequence[Any], fill: Any) -> list[tuple[Any, ...]]:
    """Floats are stored as the weight itself, blocks with an axis for their bytes."""
    return [tuple(values) if kind.block_size == 1 else (*values, fill)]


_CODEBOOKS = MappingProxyType(
    {
        GGMLType.IQ1_S: codebooks.IQ1,
        GGMLType.IQ1_M: codebooks.IQ1,
        GGMLType.IQ2_XXS: codebooks.IQ2_XXS,
        GGMLType.IQ2_XS: codebooks.IQ2_XS,
        GGMLType.IQ2_S: codebooks.IQ2_S,
        GGMLType.IQ3_XXS: codebooks.IQ3_XXS,
        GGMLType.IQ3_S: codebooks.IQ3_S,
    }
)


def _has_tiles(kind: GGMLType, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and kind.name in cpu_kernels.FORMATS


def _stored_tiles(kind: GGMLType, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(cpu_kernels.tiled_shape(kind.name, shape), jnp.uint8)


def _pack_tiles(
    data: np.ndarray, kind: GGMLType, shape: tuple[int, ...], arena: cpu_kernels.Arena | None
) -> np.ndarray:
    codebook = _CODEBOOKS.get(kind)
    points = None if codebook is None else codebooks.digits(codebook)
    return cpu_kernels.pack(kind.name, data.reshape(*shape[:-1], -1), shape[-1], points, arena)


def _unpack_tiles(data: jax.Array, kind: GGMLType, matrix: Matrix) -> jax.Array:
    return cpu_kernels.unpack(data, kind.name, matrix)


def _take_tile_rows(data: jax.Array, kind: GGMLType, matrix: Matrix, ids: jax.Array) -> jax.Array:
    return cpu_kernels.take_rows(data, kind.name, matrix, ids)


def _tile_units(_: GGMLType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Whole tiles of rows, where none is filled up; a tile runs through all columns."""
    *lead, rows, _columns = shape
    return (*lead, 1 if rows % cpu_kernels.TILE_ROWS else rows // cpu_kernels.TILE_ROWS, 1)


def _pallas_layout(backend: Backend) -> Layout:
    def pack(data: np.ndarray, kind: GGMLType, shape: tuple[int, ...], _: object) -> tuple[np.ndarray, ...]:
        return pallas.pack(kind.name, data.reshape(*shape[:-1], -1), shape[-1], backend)

    def units(kind: GGMLType, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Any rows, which are filled up; of columns whole blocks of the file in pairs of groups, as scales come."""
        *lead, rows, columns = shape
        least = math.lcm(kind.block_size, 2 * pallas.FORMATS[kind.name].group)
        return (*lead, rows, 1 if columns % least else columns // least)

    def spread(kind: GGMLType, values: Sequence[Any], _: Any) -> list[tuple[Any, ...]]:
        """To the planes, and to the scales behind them, whose last axis has the rows."""
        *lead, rows, columns = values
        turned = (*lead, columns, rows)
        return [tuple(values) if backend == "triton" else turned for _ in pallas.FORMATS[kind.name].planes] + [turned]

    return Layout(
        holds=lambda kind, shape: len(shape) >= 2 and kind.name in pallas.FORMATS,
        stored=lambda kind, shape: pallas.stored_shapes(kind.name, shape, backend),
        pack=pack,
        unpack=lambda data, kind, matrix: pallas.unpack(data, kind.name, matrix, backend),
        take_rows=lambda data, kind, matrix, ids: pallas.take_rows(data, kind.name, matrix, ids, backend),
        spread=spread,
        units=units,
        apart=True,
    )


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "blocks": Layout(
            holds=lambda kind, shape: True,
            stored=_stored_blocks,
            pack=_view_blocks,
            unpack=_unpack_blocks,
            take_rows=_take_block_rows,
            spread=_spread_blocks,
            units=lambda kind, shape: (*shape[:-1], shape[-1] // kind.block_size),
        ),
        "cpu": Layout(
            holds=_has_tiles,
            stored=_stored_tiles,
            pack=_pack_tiles,
            unpack=_unpack_tiles,
            take_rows=_take_tile_rows,
            spread=lambda kind, values, fill: [(*values[:-1], fill)],
            units=_tile_units,
        ),
        "triton": _pallas_layout("triton"),
        "tpu": _pallas_layout("tpu"),
        "mps": Layout(
            holds=lambda kind, shape: len(shape) >= 2 and kind in affine.FORMATS,
            stored=affine.stored_shapes,
            pack=lambda data, kind, shape, _: affine.pack(data, kind, shape),
            unpack=lambda data, kind, _: affine.unpack(data, kind),
            take_rows=lambda data, kind, _, ids: affine.take_rows(data, kind, ids),
            spread=lambda kind, values, fill: [tuple(values)] * 3,
        ),
    }
)


def layout_for(name: str, kind: GGMLType, shape: tuple[int, ...]) -> str:
    """The layout `name` where it can hold such a weight, else `blocks`; ValueError for an unknown layout."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return name if LAYOUTS[name].holds(kind, shape) else "blocks"
