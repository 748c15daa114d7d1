"""Blocks of 256 weights that index codebooks of whole vectors: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M.

Layouts and equations: `block_iq*` in ggml-common.h and `dequantize_row_iq*` in ggml-quants.c.
In all of them half x scale x grid value needs at most 22 bits and is exact in float32, in any order.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int8, UInt, UInt8, UInt16

from realm_jax.quant import codebooks
from realm_jax.quant.codebooks import Codebook
from realm_jax.quant.formats.bits import Blocks, Weights, fields, flatten, read_half, read_u16, read_u32, split


def decode_iq2_xxs(blocks: Blocks) -> Weights:
    """`w = d * (scale[j] + 0.5) / 4 * sign * grid[index]` for 8 sub-blocks j of 4 vectors of 8.

    ::

        byte  0   2                        66
              | d | 8 x { index[4] | u32 } |    u32 = sign7[0] | sign7[1] << 7 | sign7[2] << 14 | sign7[3] << 21
                                                   | scale << 28

    Seven sign bits and their parity are the eight signs of a vector (`_signs_of_seven`).
    """
    groups = split(blocks[..., 2:], 8, 8)
    tails = read_u32(flatten(groups[..., 4:]))
    scales = _quarter_scales(blocks, (tails >> 28).astype(jnp.uint8))
    vectors = _lookup(codebooks.IQ2_XXS, groups[..., :4]) * _signs_of_seven(fields(tails, bits=7, count=4))
    return _scaled(scales, vectors)


def decode_iq2_xs(blocks: Blocks) -> Weights:
    """`w = d * (scale[j] + 0.5) / 4 * sign * grid[index]` for 16 sub-blocks j of 2 vectors of 8.

    ::

        byte  0   2                66          74
              | d | qs, 32 x u16   | scales[8] |    qs = index | sign7 << 9
                                                     scales[k] = scale[2 k] | scale[2 k + 1] << 4
    """
    words = split(read_u16(blocks[..., 2:66]), 16, 2)
    scales = _quarter_scales(blocks, flatten(fields(blocks[..., 66:], bits=4, count=2)))
    return _scaled(scales, _lookup(codebooks.IQ2_XS, words & 511) * _signs_of_seven(words >> 9))


def decode_iq2_s(blocks: Blocks) -> Weights:
    """`w = d * (scale[j] + 0.5) / 4 * sign * grid[index]` for 16 sub-blocks j of 2 vectors of 8.

    ::

        byte  0   2        34           66     74          82
              | d | qs[32] | signs[32]  | qh[8] | scales[8] |

        index[4 k + i] = qs[4 k + i] | (field i of qh[k], 2 bits) << 8; scales as in IQ2_XS
    """
    high = flatten(fields(blocks[..., 66:74], bits=2, count=4)).astype(jnp.uint16)
    index = split(blocks[..., 2:34].astype(jnp.uint16) | (high << 8), 16, 2)
    scales = _quarter_scales(blocks, flatten(fields(blocks[..., 74:], bits=4, count=2)))
    return _scaled(scales, _lookup(codebooks.IQ2_S, index) * _signs(split(blocks[..., 34:66], 16, 2)))


def decode_iq3_xxs(blocks: Blocks) -> Weights:
    """`w = d * (scale[j] + 0.5) / 2 * sign * grid[index]` for 8 sub-blocks j of 8 vectors of 4.

    ::

        byte  0   2            66              98
              | d | index[64]  | 8 x u32       |    u32 as in IQ2_XXS, seven sign bits for two vectors
    """
    tails = read_u32(blocks[..., 66:])
    scales = read_half(blocks[..., :2]) * ((tails >> 28).astype(jnp.float32) + 0.5) * 0.5
    vectors = _pairs(_lookup(codebooks.IQ3_XXS, split(blocks[..., 2:66], 8, 8)))
    return _scaled(scales, vectors * _signs_of_seven(fields(tails, bits=7, count=4)))


def decode_iq3_s(blocks: Blocks) -> Weights:
    """`w = d * (2 scale[j] + 1) * sign * grid[index]` for 8 sub-blocks j of 8 vectors of 4.

    ::

        byte  0   2        66      74          106         110
              | d | qs[64] | qh[8] | signs[32] | scales[4] |    index[8 k + i] = qs[8 k + i] | (bit i of qh[k]) << 8
                                                                scales[k] = scale[2 k] | scale[2 k + 1] << 4
    """
    high = flatten(fields(blocks[..., 66:74], bits=1, count=8)).astype(jnp.uint16)
    index = split(blocks[..., 2:66].astype(jnp.uint16) | (high << 8), 8, 8)
    scales = _odd_scales(read_half(blocks[..., :2]), flatten(fields(blocks[..., 106:], bits=4, count=2)))
    return _scaled(scales, _pairs(_lookup(codebooks.IQ3_S, index)) * _signs(split(blocks[..., 74:106], 8, 4)))


def decode_iq1_s(blocks: Blocks) -> Weights:
    """`w = d * (2 scale[j] + 1) * (grid[index] + delta[j])`, delta = +-1/8, for 8 sub-blocks j of 4 vectors of 8.

    ::

        byte  0   2        34              50
              | d | qs[32] | qh, 8 x u16   |    qh[j] = high[4 j] | high[4 j + 1] << 3 | high[4 j + 2] << 6 |
                                                        high[4 j + 3] << 9 | scale[j] << 12 | (delta[j] < 0) << 15
                                                index[i] = qs[i] | high[i] << 8
    """
    words = read_u16(blocks[..., 34:])
    index = split(blocks[..., 2:34].astype(jnp.uint16), 8, 4) | (fields(words, bits=3, count=4) << 8)
    scales = _odd_scales(read_half(blocks[..., :2]), ((words >> 12) & 7).astype(jnp.uint8))
    delta = _eighths(words >> 15)[..., None, None]
    return _scaled(scales, _lookup(codebooks.IQ1, index).astype(jnp.float32) + delta)


def decode_iq1_m(blocks: Blocks) -> Weights:
    """`w = d * (2 scale[j] + 1) * (grid[index] + delta[v])`, delta = +-1/8, for 16 sub-blocks j of 2 vectors v of 8.

    ::

        byte  0        32        48                56
              | qs[32] | qh[16]  | scales, 4 x u16 |

        index[v]  = qs[v] | high[v] << 8
        qh[j]     = high[2 j] | (delta[2 j] < 0) << 3 | high[2 j + 1] << 4 | (delta[2 j + 1] < 0) << 7
        scales[k] = scale[4 k] | scale[4 k + 1] << 3 | scale[4 k + 2] << 6 | scale[4 k + 3] << 9 | (nibble k of d) << 12
    """
    words = read_u16(blocks[..., 48:])
    high = fields(blocks[..., 32:48], bits=4, count=2)
    index = split(blocks[..., :32].astype(jnp.uint16), 16, 2) | ((high & 7).astype(jnp.uint16) << 8)
    scales = _odd_scales(_scattered_half(words), flatten(fields(words, bits=3, count=4)).astype(jnp.uint8))
    return _scaled(scales, _lookup(codebooks.IQ1, index).astype(jnp.float32) + _eighths(high >> 3)[..., None])


def _scattered_half(words: UInt16[Array, "*lead 4"]) -> Float32[Array, "*lead 1"]:
    """IQ1_M's scale, whose four nibbles are the top nibbles of the scale words."""
    top = words >> 12
    bits = top[..., 0:1] | (top[..., 1:2] << 4) | (top[..., 2:3] << 8) | (top[..., 3:4] << 12)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def _quarter_scales(blocks: Blocks, scales: UInt8[Array, "*lead sub"]) -> Float32[Array, "*lead sub"]:
    return read_half(blocks[..., :2]) * (scales.astype(jnp.float32) + 0.5) * 0.25


def _odd_scales(d: Float32[Array, "*lead 1"], scales: UInt8[Array, "*lead sub"]) -> Float32[Array, "*lead sub"]:
    return d * (2 * scales + 1).astype(jnp.float32)


def _lookup(codebook: Codebook, index: UInt[Array, "*lead vectors"]) -> Int8[Array, "*lead vectors digits"]:
    return jnp.asarray(codebooks.points(codebook)).at[index].get(mode="promise_in_bounds")


def _pairs(vectors: Int8[Array, "*lead sub 8 4"]) -> Int8[Array, "*lead sub 4 8"]:
    return split(flatten(vectors), 4, 8)


def _signs(bits: UInt8[Array, "*lead vectors"]) -> Int8[Array, "*lead vectors 8"]:
    """Bit i set means that weight i is negative."""
    return 1 - 2 * fields(bits, bits=1, count=8).astype(jnp.int8)


def _signs_of_seven(bits: UInt[Array, "*lead vectors"]) -> Int8[Array, "*lead vectors 8"]:
    """Every stored vector has an even number of negative weights: the eighth sign is the parity of the others."""
    seven = bits.astype(jnp.uint8)
    return _signs(seven | ((lax.population_count(seven) & 1) << 7))


def _eighths(negative: UInt[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    return jnp.where(negative == 0, jnp.float32(0.125), jnp.float32(-0.125))


def _scaled(scales: Float32[Array, "*lead sub"], vectors: jax.Array) -> Weights:
    """Scales times `vectors[*lead, sub, vectors, 8]`, as one axis of weights."""
    return flatten(scales[..., None, None] * vectors.astype(jnp.float32), 3)
