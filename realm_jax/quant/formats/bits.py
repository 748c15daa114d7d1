"""Bit-level readers that every block format shares: half floats, multi-byte words, bit fields, signs."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt, UInt8, UInt16, UInt32

Blocks = UInt8[Array, "*lead bytes"]
Weights = Float32[Array, "*lead weights"]


def read_u16(raw: UInt8[Array, "*lead bytes"]) -> UInt16[Array, "*lead words"]:
    """Little-endian 16-bit words: `raw[2 i] | raw[2 i + 1] << 8`."""
    wide = raw.astype(jnp.uint16)
    return wide[..., 0::2] | (wide[..., 1::2] << 8)


def read_u32(raw: UInt8[Array, "*lead bytes"]) -> UInt32[Array, "*lead words"]:
    """Little-endian 32-bit words."""
    wide = raw.astype(jnp.uint32)
    return wide[..., 0::4] | (wide[..., 1::4] << 8) | (wide[..., 2::4] << 16) | (wide[..., 3::4] << 24)


def read_half(raw: UInt8[Array, "*lead bytes"]) -> Float32[Array, "*lead halves"]:
    """IEEE half floats as float32, which holds every half exactly, subnormal ones included.

    The bytes are joined by shifts because a bitcast that changes the width would end XLA's fusion of the decoding.
    """
    return lax.bitcast_convert_type(read_u16(raw), jnp.float16).astype(jnp.float32)


def read_i8(raw: UInt8[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    """Two's complement bytes as float32."""
    return lax.bitcast_convert_type(raw, jnp.int8).astype(jnp.float32)


def stacked_planes(packed: UInt8[Array, "*lead n"], *, bits: int, count: int) -> UInt8[Array, "*lead planes n"]:
    """Split bytes into fields of `bits` bits, lowest first: `out[..., p, i] = packed[..., i] >> bits * p & mask`.

    The same values as `planes`. XLA's CPU backend vectorises a stack of two to four planes and turns a longer one into
    a branch per weight; a shift by an array stays a loop of moderate speed for any number.
    """
    mask = jnp.uint8((1 << bits) - 1)
    return jnp.stack([(packed >> jnp.uint8(bits * p)) & mask for p in range(count)], axis=-2)


def nibbles(packed: UInt8[Array, "*lead n"]) -> UInt8[Array, "*lead 2 n"]:
    """The plane of the low halves of the bytes, then the plane of their high halves."""
    return stacked_planes(packed, bits=4, count=2)


def planes(
    packed: UInt8[Array, "*lead n"], *, bits: int, count: int, step: int | None = None
) -> UInt8[Array, "*lead planes n"]:
    """Split bytes into fields, lowest first, as a shift by an array: `packed[..., i] >> step * p & mask`.

    The fields are `bits` wide and start `step` bits apart, by default `bits`.
    """
    return _shifted(packed, bits, count, axis=packed.ndim - 1, step=step)


def fields(packed: UInt[Array, "*lead n"], *, bits: int, count: int) -> UInt[Array, "*lead n fields"]:
    """Split words into fields, lowest first and side by side: `out[..., i, f] = packed[..., i] >> bits * f & mask`."""
    return _shifted(packed, bits, count, axis=packed.ndim)


def _shifted(packed: jax.Array, bits: int, count: int, axis: int, step: int | None = None) -> jax.Array:
    shape = (*packed.shape[:axis], count, *packed.shape[axis:])
    shifts = lax.broadcasted_iota(packed.dtype, shape, axis) * packed.dtype.type(bits if step is None else step)
    return (jnp.broadcast_to(jnp.expand_dims(packed, axis), shape) >> shifts) & packed.dtype.type((1 << bits) - 1)


def flatten(values: jax.Array, axes: int = 2) -> jax.Array:
    """Merge the last `axes` axes into one."""
    lead = values.ndim - axes
    return values.reshape(*values.shape[:lead], math.prod(values.shape[lead:]))


def split(values: jax.Array, *sizes: int) -> jax.Array:
    """Give the last axis the shape `sizes`."""
    return values.reshape(*values.shape[:-1], *sizes)
