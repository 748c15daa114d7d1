"""Blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1.

Layouts and equations: `block_q4_0` ... `block_q8_1` in ggml-common.h and `dequantize_row_*` in ggml-quants.c.
A half float has 11 significant bits and a code at most 8, so every product here is exact in float32, and a fused
multiply-add rounds just as the two operations do: the result does not depend on how XLA contracts them.
"""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

from realm_jax.quant.formats.bits import Blocks, Weights, fields, flatten, nibbles, read_half, read_i8, read_u32


def _nibbles(raw: UInt8[Array, "*lead 16"]) -> UInt8[Array, "*lead 32"]:
    return flatten(nibbles(raw))


def _fifth_bits(raw: UInt8[Array, "*lead 4"]) -> UInt8[Array, "*lead 32"]:
    return flatten(fields(read_u32(raw), bits=1, count=32)).astype(jnp.uint8) << 4


def decode_q4_0(blocks: Blocks) -> Weights:
    """`w[i] = d * (q[i] - 8)`.

    ::

        byte  0   2                18
              | d | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4
    """
    codes = _nibbles(blocks[..., 2:]).astype(jnp.int8) - 8
    return read_half(blocks[..., :2]) * codes.astype(jnp.float32)


def decode_q4_1(blocks: Blocks) -> Weights:
    """`w[i] = d * q[i] + m`.

    ::

        byte  0   2   4                20
              | d | m | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4
    """
    codes = _nibbles(blocks[..., 4:]).astype(jnp.float32)
    return read_half(blocks[..., :2]) * codes + read_half(blocks[..., 2:4])


def decode_q5_0(blocks: Blocks) -> Weights:
    """`w[i] = d * (q[i] - 16)`.

    ::

        byte  0   2         6                22
              | d | qh[4]   | qs[16]         |    q[i]      = qs[i] & 15 | (bit i of qh) << 4
                                                  q[i + 16] = qs[i] >> 4 | (bit i + 16 of qh) << 4
    """
    codes = (_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])).astype(jnp.int8) - 16
    return read_half(blocks[..., :2]) * codes.astype(jnp.float32)


def decode_q5_1(blocks: Blocks) -> Weights:
    """`w[i] = d * q[i] + m`.

    ::

        byte  0   2   4         8                24
              | d | m | qh[4]   | qs[16]         |    q as in Q5_0
    """
    codes = (_nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])).astype(jnp.float32)
    return read_half(blocks[..., :2]) * codes + read_half(blocks[..., 2:4])


def decode_q8_0(blocks: Blocks) -> Weights:
    """`w[i] = q[i] * d` with signed bytes q.

    ::

        byte  0   2                        34
              | d | q[32]                  |
    """
    return read_i8(blocks[..., 2:]) * read_half(blocks[..., :2])


def decode_q8_1(blocks: Blocks) -> Weights:
    """`w[i] = q[i] * d` with signed bytes q; the sum serves dot products and is not read.

    ::

        byte  0   2   4                        36
              | d | s | q[32]                  |    s = d * sum(q)
    """
    return read_i8(blocks[..., 4:]) * read_half(blocks[..., :2])
