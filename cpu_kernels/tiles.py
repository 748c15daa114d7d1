"""Tiles in jnp: the shape of packed weights, their decoding, row lookup and products.

`tile_kinds` says what they stand for and src/tiles.h which bytes they are.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from cpu_kernels.tile_kinds import FORMATS, GROUP, TILE_ROWS, ScaleCode, TileKind, UnitScale

__all__ = ["reference_matmul", "take_rows", "tiled_shape", "unpack"]

_VECTORS = 8

# Bytes of a weight that reference_matmul decodes at a time.
_DECODED_BYTES = 2**20


def tiled_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the uint8 array that holds weights `[*lead, rows, columns]` of a format: `(*lead, tiles, bytes)`.

    Raises:
        ValueError: no tiles exist for the format, or its groups do not divide the columns.
    """
    if kind not in FORMATS:
        raise ValueError(f"formats with tiles are {', '.join(FORMATS)}, got {kind}")
    *lead, rows, columns = shape
    tile = FORMATS[kind]
    if columns % GROUP and tile.plain is None:
        raise ValueError(f"columns must be a multiple of {GROUP}, got {columns}")
    units = math.ceil(columns / (GROUP * tile.groups))
    return (*lead, math.ceil(rows / TILE_ROWS), units * tile.unit_bytes)


def unpack(
    packed: UInt8[Array, "*lead tiles bytes"], kind: str, shape: tuple[int, int]
) -> Float32[Array, "*lead rows columns"]:
    """The float32 weights `[*lead, rows, columns]`, for `shape = (rows, columns)`, that the kernels multiply by."""
    rows, columns = shape
    weights = _decode(_lanes(packed, FORMATS[kind]), FORMATS[kind])
    *lead, tiles, padded_rows, padded_columns = weights.shape
    return weights.reshape(*lead, tiles * padded_rows, padded_columns)[..., :rows, :columns]


def take_rows(
    packed: UInt8[Array, "tiles bytes"], kind: str, shape: tuple[int, int], rows: Int[Array, "*ids"]
) -> Float32[Array, "*ids columns"]:
    """`unpack(packed, kind, shape)[rows]`, decoding only those rows; indices are clipped to the matrix."""
    rows = jnp.clip(rows, 0, shape[0] - 1)
    lanes = _lanes(jnp.take(packed, rows // TILE_ROWS, axis=0), FORMATS[kind])
    own = jax.tree.map(functools.partial(_take_lane, lane=rows % TILE_ROWS), lanes)
    return _decode(own, FORMATS[kind])[..., 0, : shape[1]]


def reference_matmul(
    x: Float[Array, "*batch columns"], packed: UInt8[Array, "tiles bytes"], kind: str, shape: tuple[int, int]
) -> Float[Array, "*batch rows"]:
    """`x @ unpack(packed, kind, shape).T` through XLA, accumulated in float32, decoding some tiles at a time.

    Differentiable in `x` in both modes: the backward pass decodes again instead of keeping the decoded weight.
    """
    rows, columns = shape

    @jax.checkpoint
    def times_tile(x: jax.Array, tile: jax.Array) -> jax.Array:
        weights = unpack(tile[None], kind, (TILE_ROWS, columns)).astype(x.dtype)
        product = functools.partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
        return product(x, weights.T)

    at_once = max(1, _DECODED_BYTES // (4 * TILE_ROWS * columns))
    out = jax.lax.map(lambda tile: times_tile(x, tile), packed, batch_size=min(at_once, packed.shape[0]))
    out = jnp.moveaxis(out, 0, -2)
    return out.reshape(*out.shape[:-2], -1)[..., :rows].astype(x.dtype)


def _lanes(packed: jax.Array, kind: TileKind) -> dict[str, jax.Array]:
    """Cut tiles `[*lead, bytes]` into fields, each `[*lead, groups, vectors or sets, rows of the tile, bytes]`."""
    *lead, size = packed.shape
    units = packed.reshape(*lead, size // kind.unit_bytes, kind.unit_bytes)
    codes = (kind.low_bits, TILE_ROWS, 4) if kind.plain is None else (GROUP, TILE_ROWS, kind.low_bits // 8)
    shapes = {
        "codes": (kind.groups, *codes),
        "planes": (kind.groups, kind.high_bits, TILE_ROWS, 4),
        "scales": (kind.groups, kind.sets, TILE_ROWS, kind.scale_width),
        "unit": (1, kind.unit_scale.sets, TILE_ROWS, kind.unit_scale.width),
    }
    shapes = {name: shape for name, shape in shapes.items() if math.prod(shape)}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(units, ends[:-1], axis=-1)
    fields = {}
    for (name, shape), part in zip(shapes.items(), parts, strict=True):
        each = part.reshape(*part.shape[:-1], *shape)
        each = jnp.repeat(each, kind.groups // shape[0], axis=-4)
        fields[name] = each.reshape(*lead, -1, *shape[1:])
    return fields


def _take_lane(field: jax.Array, lane: jax.Array) -> jax.Array:
    """Of `[*ids, groups, vectors, rows of the tile, bytes]`, one row of each: its axis keeps length 1."""
    index = lane.reshape(*lane.shape, 1, 1, 1, 1)
    return jnp.take_along_axis(field, index, axis=-2)


def _decode(fields: dict[str, jax.Array], kind: TileKind) -> jax.Array:
    """Weights `[*lead, rows of the tile, columns]` from the fields of tiles."""
    if kind.plain is not None:
        weights = jax.lax.bitcast_convert_type(fields["codes"], kind.plain).astype(jnp.float32)
        weights = jnp.moveaxis(weights, -1, -3)  # [*lead, groups, columns, rows] -> [*lead, rows, groups, columns]
        return weights.reshape(*weights.shape[:-2], -1)
    codes = _spread(fields["codes"], kind.low_bits)
    if kind.high_bits:
        codes = codes | (_spread(fields["planes"], kind.high_bits) << kind.low_bits)
    if kind.table is None:
        values = codes.astype(jnp.float32) - kind.offset
    else:
        values = jnp.asarray(kind.table, jnp.float32).at[codes].get(mode="promise_in_bounds")
    scales, minima = _scales(fields, kind)
    weights = values * _of_vectors(scales)
    if minima is not None:
        weights = weights + _of_vectors(minima)
    # [*lead, groups, vectors, rows, 4] -> [*lead, rows, groups, vectors, 4]
    weights = jnp.moveaxis(weights, -2, -4)
    return weights.reshape(*weights.shape[:-3], -1)


def _spread(stored: jax.Array, bits: int) -> jax.Array:
    """Fields of `bits` bits, lowest first: `[*lead, groups, bits, rows, 4] -> [*lead, groups, vectors, rows, 4]`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1, 1)
    planes = (stored[..., :, None, :, :] >> _align(shifts, stored.ndim + 1)) & np.uint8(2**bits - 1)
    return planes.reshape(*stored.shape[:-3], _VECTORS, *stored.shape[-2:])


def _scales(fields: dict[str, jax.Array], kind: TileKind) -> tuple[jax.Array, jax.Array | None]:
    """Scales and minima `[*lead, groups, sets, rows of the tile]`, a unit's own multiplied in."""
    own = _unit_scales(fields["unit"], kind.unit_scale) if kind.unit_scale != UnitScale.NONE else None
    if kind.scale_code == ScaleCode.NONE:
        assert own is not None
        return own, None
    stored = fields["scales"]
    if kind.scale_code == ScaleCode.PAIR:
        pairs = stored[..., 0] ^ 0x80
        scales, minima = (pairs & 15).astype(jnp.float32), (pairs >> 4).astype(jnp.float32)
    else:
        numbers = _group_scales(stored, kind.scale_code)
        scales, minima = numbers[..., : kind.scales, :], numbers[..., kind.scales :, :]
    if own is not None:
        scales, minima = scales * own[..., :1, :], minima * own[..., -1:, :]
    return scales, minima if kind.has_min else None


def _group_scales(stored: jax.Array, code: ScaleCode) -> jax.Array:
    if code == ScaleCode.HALF:
        return _halves(stored)
    if code == ScaleCode.E4M3:
        bits = stored[..., 0].astype(jnp.uint16) << 7
        return jax.lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32) * 128
    integers = jax.lax.bitcast_convert_type(stored[..., 0], jnp.int8)
    if code == ScaleCode.INTEGER:
        return integers.astype(jnp.float32)
    assert code == ScaleCode.POWER_OF_TWO
    return jax.lax.bitcast_convert_type((integers.astype(jnp.int32) + 127) << 23, jnp.float32)


def _unit_scales(stored: jax.Array, code: UnitScale) -> jax.Array:
    return jax.lax.bitcast_convert_type(stored, jnp.float32) if code == UnitScale.SINGLE else _halves(stored)


def _halves(stored: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(stored, jnp.float16).astype(jnp.float32)


def _of_vectors(sets: jax.Array) -> jax.Array:
    """`[*lead, groups, sets, rows]`, each set for its share of a group's vectors, as `[..., vectors, rows, 1]`."""
    return jnp.repeat(sets, _VECTORS // sets.shape[-2], axis=-2)[..., None]


def _align(array: np.ndarray, ndim: int) -> np.ndarray:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)
