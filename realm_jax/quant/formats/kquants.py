"""Super-blocks of 256 weights whose sub-block scales are themselves quantised: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K.

Layouts and equations: `block_q*_K` in ggml-common.h and `dequantize_row_q*_K` in ggml-quants.c.
A product of half, sub-scale and code needs at most 24 bits (Q6_K: 11 + 7 + 5), so it is exact in float32 and only the
subtraction of a minimum rounds: the result does not depend on how XLA contracts or orders the operations.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt8

from realm_jax.quant.formats.bits import (
    Blocks,
    Weights,
    flatten,
    nibbles,
    planes,
    read_half,
    read_i8,
    read_u32,
    split,
    stacked_planes,
)


def decode_q2_k(blocks: Blocks) -> Weights:
    """`w[16 j + i] = d * scale[j] * q[16 j + i] - dmin * min[j]` for 16 sub-blocks j of 16.

    ::

        byte  0            16           80  82     84
              | scales[16] | qs[64]     | d | dmin |    scales[j] = scale[j] | min[j] << 4
                                                        plane p of qs[32 h + l] (2 bits) = q[128 h + 32 p + l]
    """
    scales = read_half(blocks[..., 80:82]) * (blocks[..., :16] & 15).astype(jnp.float32)
    minima = read_half(blocks[..., 82:84]) * (blocks[..., :16] >> 4).astype(jnp.float32)
    codes = _two_bit_codes(blocks[..., 16:80]).astype(jnp.float32)
    return flatten(scales[..., None] * codes - minima[..., None])


def decode_q3_k(blocks: Blocks) -> Weights:
    """`w[16 j + i] = d * (scale[j] - 32) * (q[16 j + i] - 4)` for 16 sub-blocks j of 16.

    ::

        byte  0           32           96           108 110
              | hmask[32] | qs[64]     | scales[12] | d |    low 2 bits of q as in Q2_K; bit 2 of q[32 p + l]
                                                             = bit p of hmask[l]

        scales[k]     = scale[k] & 15 | (scale[k + 8] & 15) << 4,  k = 0..7
        scales[8 + k] = field f, 2 bits, is scale[4 f + k] >> 4,   k = 0..3
    """
    low = flatten(nibbles(blocks[..., 96:104]))
    high = flatten(planes(blocks[..., 104:108], bits=2, count=4))
    scales = read_half(blocks[..., 108:110]) * ((low | (high << 4)).astype(jnp.int8) - 32).astype(jnp.float32)
    third_bits = split(flatten(planes(blocks[..., :32], bits=1, count=8)), 16, 16)
    codes = (_two_bit_codes(blocks[..., 32:96]) | (third_bits << 2)).astype(jnp.int8) - 4
    return flatten(scales[..., None] * codes.astype(jnp.float32))


def decode_q4_k(blocks: Blocks) -> Weights:
    """`w[32 j + i] = d * scale[j] * q[32 j + i] - dmin * min[j]` for 8 sub-blocks j of 32.

    ::

        byte  0   2      4            16               144
              | d | dmin | scales[12] | qs[128]        |    qs[32 p + i] = q[64 p + i] | q[64 p + 32 + i] << 4
    """
    return _affine(blocks, _four_bit_codes(blocks[..., 16:]))


def decode_q5_k(blocks: Blocks) -> Weights:
    """`w[32 j + i] = d * scale[j] * q[32 j + i] - dmin * min[j]` for 8 sub-blocks j of 32.

    ::

        byte  0   2      4            16       48               176
              | d | dmin | scales[12] | qh[32] | qs[128]        |    low 4 bits of q as in Q4_K; bit 4 of q[32 j + i]
                                                                     = bit j of qh[i]
    """
    fifth_bits = planes(blocks[..., 16:48], bits=1, count=8)
    return _affine(blocks, _four_bit_codes(blocks[..., 48:]) | (fifth_bits << 4))


def decode_q6_k(blocks: Blocks) -> Weights:
    """`w[16 j + i] = d * scale[j] * (q[16 j + i] - 32)` for 16 sub-blocks j of 16, scales signed bytes.

    ::

        byte  0           128      192          208 210
              | ql[128]   | qh[64] | scales[16] | d |

        For each half h of 128 weights, nibble n, column half c, l = 0..31:
              q[128 h + 64 n + 32 c + l] = nibble n of ql[64 h + 32 c + l] | (bits 4 n + 2 c, + 1 of qh[32 h + l]) << 4
    """
    ql = split(blocks[..., :128], 2, 2, 32)
    # For each column half, its two bits for the low nibble at 0 and for the high nibble at 4.
    qh = planes(split(blocks[..., 128:192], 2, 32), bits=6, count=2, step=2)
    codes = jnp.stack([(ql & 15) | ((qh & 3) << 4), (ql >> 4) | (qh & 48)], axis=-3)
    codes = split(flatten(codes, 4), 16, 16).astype(jnp.int8) - 32
    scales = read_half(blocks[..., 208:210]) * read_i8(blocks[..., 192:208])
    return flatten(scales[..., None] * codes.astype(jnp.float32))


def decode_q8_k(blocks: Blocks) -> Weights:
    """`w[i] = d * q[i]` with a float32 scale and signed bytes q; the sums serve dot products and are not read.

    ::

        byte  0   4             260            292
              | d | q[256]      | bsums[16]    |    d float32, bsums int16
    """
    return lax.bitcast_convert_type(read_u32(blocks[..., :4]), jnp.float32) * read_i8(blocks[..., 4:260])


def _two_bit_codes(raw: UInt8[Array, "*lead 64"]) -> UInt8[Array, "*lead 16 16"]:
    return split(flatten(stacked_planes(split(raw, 2, 32), bits=2, count=4), 3), 16, 16)


def _four_bit_codes(raw: UInt8[Array, "*lead 128"]) -> UInt8[Array, "*lead 8 32"]:
    return split(flatten(nibbles(split(raw, 4, 32)), 3), 8, 32)


def _affine(blocks: Blocks, codes: UInt8[Array, "*lead 8 32"]) -> Weights:
    scales, minima = _six_bit_scales(blocks[..., 4:16])
    scales = read_half(blocks[..., 0:2]) * scales
    minima = read_half(blocks[..., 2:4]) * minima
    return flatten(scales[..., None] * codes.astype(jnp.float32) - minima[..., None])


def _six_bit_scales(raw: UInt8[Array, "*lead 12"]) -> tuple[Float32[Array, "*lead 8"], Float32[Array, "*lead 8"]]:
    """The 8 scales and 8 minima of Q4_K and Q5_K.

    ::

        byte     bits 7..6              bits 5..0
        0..3     scale[4..7] >> 4       scale[0..3]
        4..7     min[4..7] >> 4         min[0..3]
                 bits 7..4              bits 3..0
        8..11    min[4..7] & 15         scale[4..7] & 15

    Both halves of the answer are computed everywhere and selected: a concatenation would be a branch per weight once
    XLA has fused this into the loop over weights.
    """
    rows = jnp.broadcast_to(split(raw, 3, 1, 4), (*raw.shape[:-1], 3, 2, 4))
    first, second, low = rows[..., 0, :, :], rows[..., 1, :, :], rows[..., 2, :, :]
    upper = lax.broadcasted_iota(jnp.uint8, low.shape, low.ndim - 2) == 1
    scales = jnp.where(upper, (low & 15) | ((first >> 2) & 48), first & 63)
    minima = jnp.where(upper, (low >> 4) | ((second >> 2) & 48), second & 63)
    return flatten(scales).astype(jnp.float32), flatten(minima).astype(jnp.float32)
