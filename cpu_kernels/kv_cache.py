"""The layout of the native paged KV cache in jnp: shapes, dtypes and decoding; src/kv_cache.h has the bytes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Shaped

__all__ = ["CACHE_KINDS", "cache_dtype", "cache_kind", "cache_shape", "unpack_cache"]

CACHE_KINDS = ("float32", "float16", "bfloat16", "q8_0")
"""The kinds, numbered as in src/kv_cache.h."""

_LANES = 16
_SCALE_CHANNELS = 32


def cache_dtype(kind: str) -> jnp.dtype:
    """The dtype of a cache's array: the kind itself, or uint8 for q8_0.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in CACHE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(CACHE_KINDS)}, got {kind}")
    return jnp.dtype("uint8" if kind == "q8_0" else kind)


def cache_kind(dtype: jnp.dtype) -> str:
    """The kind whose arrays have this dtype.

    Raises:
        ValueError: no kind has it.
    """
    for kind in CACHE_KINDS:
        if cache_dtype(kind) == dtype:
            return kind
    raise ValueError(f"a cache must have one of the dtypes float32, float16, bfloat16 and uint8, got {dtype}")


def cache_shape(num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kind: str) -> tuple[int, int, int, int]:
    """The shape of one layer's cache: `(num_blocks, kv_heads, 2, elements of a plane of keys or of values)`.

    Positions of a block and channels are padded to multiples of 16.
    """
    positions = _round_up(block_size)
    return (num_blocks, kv_heads, 2, positions * (_round_up(head_dim) + _scale_bytes(head_dim, kind)))


def unpack_cache(
    cache: Shaped[Array, "blocks kv_heads 2 elements"], kind: str, shape: tuple[int, int, int]
) -> Float32[Array, "blocks block_size 2 kv_heads head_dim"]:
    """The keys `[:, :, 0]` and values `[:, :, 1]` that attention reads, for `shape = (block_size, kv_heads, head_dim)`.

    A q8_0 cache stands for `scale * code`, exactly.
    """
    block_size, _, head_dim = shape
    positions, channels = _round_up(block_size), _round_up(head_dim)
    keys, values = cache[:, :, 0], cache[:, :, 1]
    keys = keys.reshape(*keys.shape[:2], positions // _LANES, -1)
    values = values.reshape(*values.shape[:2], positions, -1)
    lead = (*keys.shape[:2], positions // _LANES)
    if kind == "q8_0":
        keys = _dequantize(keys, _LANES, channels)
        values = _dequantize(values, 1, channels)
    keys = jnp.swapaxes(keys.astype(jnp.float32).reshape(*lead, channels, _LANES), -1, -2)
    keys = keys.reshape(*lead[:2], positions, channels)
    both = jnp.stack([keys, values.astype(jnp.float32)], axis=2)
    return jnp.moveaxis(both, (1, 2, 3), (3, 2, 1))[:, :block_size, :, :, :head_dim]


def _dequantize(rows: jax.Array, lanes: int, channels: int) -> jax.Array:
    """Of `[..., bytes]`, codes `[channels][lanes]` before float16 scales `[channels / 32][lanes]`, the products."""
    codes = jax.lax.bitcast_convert_type(rows[..., : channels * lanes], jnp.int8).astype(jnp.float32)
    halves = rows[..., channels * lanes :].reshape(*rows.shape[:-1], -1, lanes, 2)
    scales = jax.lax.bitcast_convert_type(halves, jnp.float16).astype(jnp.float32)
    scales = jnp.repeat(scales, _SCALE_CHANNELS, axis=-2)[..., :channels, :]
    return codes * scales.reshape(codes.shape)


def _scale_bytes(head_dim: int, kind: str) -> int:
    return 2 * math.ceil(_round_up(head_dim) / _SCALE_CHANNELS) if kind == "q8_0" else 0


def _round_up(size: int) -> int:
    return math.ceil(size / _LANES) * _LANES
