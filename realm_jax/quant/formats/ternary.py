"""Blocks of one- and three-valued codes with a single scale: Q1_0, TQ1_0, TQ2_0.

Layouts and equations: `block_q1_0`, `block_tq1_0`, `block_tq2_0` in ggml-common.h and `dequantize_row_*` in
ggml-quants.c.
"""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

from realm_jax.quant.formats.bits import Blocks, Weights, fields, flatten, planes, read_half, split


def decode_q1_0(blocks: Blocks) -> Weights:
    """`w[i] = d if bit i else -d` for 128 weights.

    ::

        byte  0   2            18
              | d | qs[16]     |    qs[k] = bits 8 k ... 8 k + 7, lowest first
    """
    bits = flatten(fields(blocks[..., 2:], bits=1, count=8)).astype(jnp.int8)
    return read_half(blocks[..., :2]) * (2 * bits - 1).astype(jnp.float32)


def decode_tq2_0(blocks: Blocks) -> Weights:
    """`w[i] = d * (q[i] - 1)` for 256 weights.

    ::

        byte  0            64  66
              | qs[64]     | d |    plane p of qs[32 h + l] (2 bits) = q[128 h + 32 p + l]
    """
    codes = flatten(planes(split(blocks[..., :64], 2, 32), bits=2, count=4), 3).astype(jnp.int8) - 1
    return read_half(blocks[..., 64:66]) * codes.astype(jnp.float32)


def decode_tq1_0(blocks: Blocks) -> Weights:
    """`w[i] = d * (q[i] - 1)` for 256 weights, five base-3 digits a byte.

    ::

        byte  0            48       52  54
              | qs[48]     | qh[4]  | d |

        qs[0..31]   hold digit p of q[32 p + l],       p = 0..4
        qs[32..47]  hold digit p of q[160 + 16 p + l], p = 0..4
        qh[0..3]    hold digit p of q[240 + 4 p + l],  p = 0..3

    A byte is the fraction `0.q0 q1 q2 q3 q4` in base 3, in units of 1/256 and rounded up: its digit p is the integer
    part of 3 times the fraction that is left after the point has moved p places.
    """
    pieces = [_base_3_digits(blocks[..., a:b], count) for a, b, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))]
    d = read_half(blocks[..., 52:54])
    return jnp.concatenate([d * (digits.astype(jnp.int8) - 1).astype(jnp.float32) for digits in pieces], axis=-1)


def _base_3_digits(raw: UInt8[Array, "*lead n"], count: int) -> UInt8[Array, "*lead weights"]:
    fractions = jnp.stack([raw * jnp.uint8(3**p) for p in range(count)], axis=-2)
    return flatten((fractions.astype(jnp.uint16) * 3 >> 8).astype(jnp.uint8))
