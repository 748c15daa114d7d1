"""The tile layout of packed weights in jnp: its geometry, decoding, row lookup and products; src/tiles.h has the bytes.

======= =============== ==== =====================================================================================
format  tile             b/w  a weight is
======= =============== ==== =====================================================================================
Q4_0    nibble           4.5  d (q - 8), exactly the file's
Q4_1    nibble_min         5  d q + m, exactly the file's
Q5_0    five             5.5  d (q - 16), exactly the file's
Q5_1    five_min           6  d q + m, exactly the file's
Q8_0    byte             8.5  d q, exactly the file's
Q4_K    nibble_min         5  f16(d s) q - f16(dmin m): scales rounded by at most 2^-11 of themselves
Q5_K    five_min           6  as Q4_K
Q6_K    six                7  f16(d s) (q - 32), rounded alike
======= =============== ==== =====================================================================================
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

__all__ = ["FORMATS", "GROUP", "TILE_ROWS", "TileKind", "reference_matmul", "take_rows", "tiled_shape", "unpack"]

TILE_ROWS = 16
GROUP = 32
_VECTORS = 8

# Bytes of a weight that reference_matmul decodes at a time.
_DECODED_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class TileKind:
    """How the tiles of a format are laid out: `index` as in src/tiles.h, the rest per unit or group of 32 columns."""

    index: int
    groups: int
    code_bytes: int
    high_bits: int = 0
    scales: int = 1
    has_min: bool = False
    offset: int = 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit: codes, planes of high bits, scales and minima of its groups."""
        scales = 32 * (self.scales + self.has_min)
        return self.groups * (self.code_bytes + 64 * self.high_bits + scales)


_NIBBLE_MIN = TileKind(index=1, groups=1, code_bytes=256, has_min=True)
_FIVE_MIN = TileKind(index=3, groups=1, code_bytes=256, high_bits=1, has_min=True)

# In the order of the packers in src/pack.cc.
FORMATS: Mapping[str, TileKind] = MappingProxyType(
    {
        "Q4_0": TileKind(index=0, groups=2, code_bytes=256, offset=8),
        "Q4_1": _NIBBLE_MIN,
        "Q5_0": TileKind(index=2, groups=2, code_bytes=256, high_bits=1, offset=16),
        "Q5_1": _FIVE_MIN,
        "Q8_0": TileKind(index=5, groups=2, code_bytes=512, offset=128),
        "Q4_K": _NIBBLE_MIN,
        "Q5_K": _FIVE_MIN,
        "Q6_K": TileKind(index=4, groups=1, code_bytes=256, high_bits=2, scales=2, offset=32),
    }
)
"""The formats that can be packed, by ggml's names."""


def tiled_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the uint8 array that holds weights `[*lead, rows, columns]` of a format: `(*lead, tiles, bytes)`.

    Raises:
        ValueError: no tiles exist for the format, or its groups do not divide the columns.
    """
    if kind not in FORMATS:
        raise ValueError(f"formats with tiles are {', '.join(FORMATS)}, got {kind}")
    *lead, rows, columns = shape
    if columns % GROUP:
        raise ValueError(f"columns must be a multiple of {GROUP}, got {columns}")
    tile = FORMATS[kind]
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
    """Cut tiles `[*lead, bytes]` into their fields, each `[*lead, groups, vectors, rows of the tile, ...]`."""
    *lead, size = packed.shape
    units = packed.reshape(*lead, size // kind.unit_bytes, kind.unit_bytes)
    sizes = {"codes": kind.code_bytes, "planes": 64 * kind.high_bits, "scales": 32 * (kind.scales + kind.has_min)}
    sizes = {name: bytes_ for name, bytes_ in sizes.items() if bytes_}
    ends = np.cumsum([kind.groups * n for n in sizes.values()])
    parts = jnp.split(units, ends[:-1], axis=-1)
    fields = {}
    for (name, bytes_), part in zip(sizes.items(), parts, strict=True):
        per_row = 2 if name == "scales" else 4
        fields[name] = part.reshape(*lead, -1, bytes_ // (per_row * TILE_ROWS), TILE_ROWS, per_row)
    return fields


def _take_lane(field: jax.Array, lane: jax.Array) -> jax.Array:
    """Of `[*ids, groups, vectors, rows of the tile, bytes]`, one row of each: its axis keeps length 1."""
    index = lane.reshape(*lane.shape, 1, 1, 1, 1)
    return jnp.take_along_axis(field, index, axis=-2)


def _decode(fields: dict[str, jax.Array], kind: TileKind) -> jax.Array:
    """Weights `[*lead, rows of the tile, columns]` from the fields of tiles."""
    codes = _codes(fields, kind).astype(jnp.float32) - kind.offset
    halves = jax.lax.bitcast_convert_type(fields["scales"], jnp.float16).astype(jnp.float32)
    scales = jnp.repeat(halves[..., : kind.scales, :], _VECTORS // kind.scales, axis=-2)
    weights = codes * scales[..., None]
    if kind.has_min:
        weights = weights + halves[..., -1:, :, None]
    # [*lead, groups, vectors, rows, 4] -> [*lead, rows, groups, vectors, 4]
    weights = jnp.moveaxis(weights, -2, -4)
    return weights.reshape(*weights.shape[:-3], -1)


def _codes(fields: dict[str, jax.Array], kind: TileKind) -> jax.Array:
    """The unsigned codes `[*lead, groups, vectors, rows of the tile, 4]`."""
    stored = fields["codes"]
    if kind.code_bytes == GROUP * TILE_ROWS:
        return stored
    low = jnp.stack([stored & 15, stored >> 4], axis=-3)
    low = low.reshape(*stored.shape[:-3], _VECTORS, *stored.shape[-2:])
    if kind.high_bits == 0:
        return low
    planes, bits = fields["planes"], kind.high_bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1, 1)
    high = (planes[..., :, None, :, :] >> _align(shifts, planes.ndim + 1)) & np.uint8(2**bits - 1)
    return low | (high.reshape(low.shape) << 4)


def _align(array: np.ndarray, ndim: int) -> np.ndarray:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)
