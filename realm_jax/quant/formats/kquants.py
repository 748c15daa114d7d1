"""Super-blocks of 256 weights whose sub-block scales are themselves quantised: Q4_K, Q5_K, Q6_K.

Layouts and equations: ggml's ``block_q*_K`` (ggml-common.h) and ``dequantize_row_q*_K`` (ggml-quants.c).
The products scale * sub-scale * code need at most 24 bits and are exact in float32, so only the final subtraction rounds.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float32, UInt8

from realm_jax.quant.formats.bits import flatten, planes, read_half

Blocks = UInt8[Array, "*lead bytes"]
Weights = Float32[Array, "*lead 256"]


def _six_bit_scales(raw: UInt8[Array, "*lead 12"]) -> tuple[Float32[Array, "*lead 8"], Float32[Array, "*lead 8"]]:
    """The 8 six-bit scales and 8 six-bit minima of Q4_K and Q5_K.

    ::

        byte     bits 7..6             bits 5..0
        0..3     scale[4..7] high 2    scale[0..3]
        4..7     min[4..7] high 2      min[0..3]
                 bits 7..4             bits 3..0
        8..11    min[4..7] low 4       scale[4..7] low 4
    """
    first, second, low = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    scales = jnp.concatenate([first & 63, (low & 15) | ((first >> 2) & 48)], axis=-1)
    minima = jnp.concatenate([second & 63, (low >> 4) | ((second >> 2) & 48)], axis=-1)
    return scales.astype(jnp.float32), minima.astype(jnp.float32)


def _affine(blocks: Blocks, codes: UInt8[Array, "*lead 8 32"]) -> Weights:
    """``d * scale[j] * q - dmin * min[j]`` with the header that Q4_K and Q5_K share."""
    scales, minima = _six_bit_scales(blocks[..., 4:16])
    scales = read_half(blocks[..., 0:2]) * scales
    minima = read_half(blocks[..., 2:4]) * minima
    return flatten(scales[..., None] * codes.astype(jnp.float32) - minima[..., None])


def _nibble_groups(raw: UInt8[Array, "*lead 128"]) -> UInt8[Array, "*lead 8 32"]:
    pairs = planes(raw.reshape(*raw.shape[:-1], 4, 32), bits=4, count=2)
    return pairs.reshape(*raw.shape[:-1], 8, 32)


def decode_q4_k(blocks: Blocks) -> Weights:
    """``w[32 j + i] = d * scale[j] * q[32 j + i] - dmin * min[j]`` for 8 sub-blocks j of 32.

    ::

        byte  0   2      4            16               144
              | d | dmin | scales[12] | qs[128]        |    qs[32 p + i] = q[64 p + i] | q[64 p + 32 + i] << 4
    """
    return _affine(blocks, _nibble_groups(blocks[..., 16:]))


def decode_q5_k(blocks: Blocks) -> Weights:
    """``w[32 j + i] = d * scale[j] * q[32 j + i] - dmin * min[j]`` for 8 sub-blocks j of 32.

    ::

        byte  0   2      4            16       48               176
              | d | dmin | scales[12] | qh[32] | qs[128]        |    low 4 bits as Q4_K; bit 4 = bit j of qh[i]
    """
    high = planes(blocks[..., 16:48], bits=1, count=8)
    return _affine(blocks, _nibble_groups(blocks[..., 48:]) | (high << 4))


def decode_q6_k(blocks: Blocks) -> Weights:
    """``w[16 j + i] = d * scale[j] * (q[16 j + i] - 32)`` for 16 sub-blocks j of 16, scales signed bytes.

    ::

        byte  0           128      192          208   210
              | ql[128]   | qh[64] | scales[16] | d   |

        for half h of 128 weights, column l of 32:
              q[128 h + l]      = ql[64 h + l]      & 15 | (qh[32 h + l] >> 0 & 3) << 4
              q[128 h + 32 + l] = ql[64 h + 32 + l] & 15 | (qh[32 h + l] >> 2 & 3) << 4
              q[128 h + 64 + l] = ql[64 h + l]      >> 4 | (qh[32 h + l] >> 4 & 3) << 4
              q[128 h + 96 + l] = ql[64 h + 32 + l] >> 4 | (qh[32 h + l] >> 6 & 3) << 4
    """
    lead = blocks.shape[:-1]
    low = planes(blocks[..., :128].reshape(*lead, 2, 64), bits=4, count=2)
    high = planes(blocks[..., 128:192].reshape(*lead, 2, 32), bits=2, count=4)
    codes = (low.reshape(*lead, 16, 16) | (high.reshape(*lead, 16, 16) << 4)).astype(jnp.int8) - 32
    scales = lax.bitcast_convert_type(blocks[..., 192:208], jnp.int8).astype(jnp.float32)
    scales = read_half(blocks[..., 208:210]) * scales
    return flatten(scales[..., None] * codes.astype(jnp.float32))
