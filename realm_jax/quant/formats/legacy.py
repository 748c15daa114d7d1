"""Blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Layouts and equations: ggml's ``block_q4_0`` ... ``block_q8_0`` (ggml-common.h) and ``dequantize_row_*`` (ggml-quants.c).
Every product below is exact in float32 (an 11-bit half times at most 8 bits), so a fused multiply-add rounds as the
separate operations do and the result does not depend on how XLA contracts them.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float32, UInt8

from realm_jax.quant.formats.bits import flatten, planes, read_half

Blocks = UInt8[Array, "*lead bytes"]
Weights = Float32[Array, "*lead weights"]


def _signed_bytes(raw: UInt8[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    return lax.bitcast_convert_type(raw, jnp.int8).astype(jnp.float32)


def _nibbles(raw: UInt8[Array, "*lead 16"]) -> UInt8[Array, "*lead 32"]:
    return flatten(planes(raw, bits=4, count=2))


def _fifth_bits(raw: UInt8[Array, "*lead 4"]) -> UInt8[Array, "*lead 32"]:
    bit_of_byte = jnp.swapaxes(planes(raw, bits=1, count=8), -1, -2)
    return flatten(bit_of_byte) << 4


def decode_q4_0(blocks: Blocks) -> Weights:
    """``w[i] = d * (q[i] - 8)``.

    ::

        byte  0   2                18
              | d | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4
    """
    codes = _nibbles(blocks[..., 2:]).astype(jnp.int8) - 8
    return read_half(blocks[..., :2]) * codes.astype(jnp.float32)


def decode_q4_1(blocks: Blocks) -> Weights:
    """``w[i] = d * q[i] + m``.

    ::

        byte  0   2   4                20
              | d | m | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4
    """
    codes = _nibbles(blocks[..., 4:]).astype(jnp.float32)
    return read_half(blocks[..., :2]) * codes + read_half(blocks[..., 2:4])


def decode_q5_0(blocks: Blocks) -> Weights:
    """``w[i] = d * (q[i] - 16)``.

    ::

        byte  0   2         6                22
              | d | qh[4]   | qs[16]         |    q[i]      = qs[i] & 15 | bit i of qh << 4
                                                  q[i + 16] = qs[i] >> 4 | bit i + 16 of qh << 4
    """
    codes = (_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])).astype(jnp.int8) - 16
    return read_half(blocks[..., :2]) * codes.astype(jnp.float32)


def decode_q5_1(blocks: Blocks) -> Weights:
    """``w[i] = d * q[i] + m``.

    ::

        byte  0   2   4         8                24
              | d | m | qh[4]   | qs[16]         |    q as in Q5_0
    """
    codes = (_nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])).astype(jnp.float32)
    return read_half(blocks[..., :2]) * codes + read_half(blocks[..., 2:4])


def decode_q8_0(blocks: Blocks) -> Weights:
    """``w[i] = q[i] * d`` with signed bytes q.

    ::

        byte  0   2                        34
              | d | qs[32]                 |
    """
    return _signed_bytes(blocks[..., 2:]) * read_half(blocks[..., :2])
