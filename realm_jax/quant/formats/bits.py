"""Bit-level readers that every block format shares: half floats, multi-byte words, bit planes."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float32, UInt8, UInt16, UInt32


def read_u16(raw: UInt8[Array, "*lead bytes"]) -> UInt16[Array, "*lead words"]:
    """Little-endian 16-bit words: ``raw[2i] | raw[2i+1] << 8``."""
    wide = raw.astype(jnp.uint16)
    return wide[..., 0::2] | (wide[..., 1::2] << 8)


def read_u32(raw: UInt8[Array, "*lead bytes"]) -> UInt32[Array, "*lead words"]:
    """Little-endian 32-bit words."""
    wide = raw.astype(jnp.uint32)
    return wide[..., 0::4] | (wide[..., 1::4] << 8) | (wide[..., 2::4] << 16) | (wide[..., 3::4] << 24)


def read_half(raw: UInt8[Array, "*lead 2"]) -> Float32[Array, "*lead 1"]:
    """One IEEE half float as float32, which holds every half exactly, subnormal ones included.

    The bytes are joined by shifts because a width-changing bitcast would keep XLA from fusing the decoding into one loop.
    """
    return lax.bitcast_convert_type(read_u16(raw), jnp.float16).astype(jnp.float32)


def planes(packed: UInt8[Array, "*lead bytes"], *, bits: int, count: int) -> UInt8[Array, "*lead planes bytes"]:
    """Split every byte into ``count`` fields of ``bits`` bits, the lowest field first: plane p is ``packed >> bits * p``.

    A stack of whole planes, not a shift by an array: XLA's CPU code for it vectorises and is 2-6 times faster.
    """
    mask = jnp.uint8((1 << bits) - 1)
    return jnp.stack([(packed >> jnp.uint8(bits * p)) & mask for p in range(count)], axis=-2)


def flatten(values: Array, axes: int = 2) -> Array:
    """Merge the last ``axes`` axes into one."""
    return values.reshape(*values.shape[: values.ndim - axes], -1)
