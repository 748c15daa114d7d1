"""Four-bit codes that index 16 fixed values: MXFP4 and NVFP4 (e2m1 floats), IQ4_NL and IQ4_XS (a nonlinear grid).

Layouts and equations: `block_mxfp4`, `block_nvfp4`, `block_iq4_nl`, `block_iq4_xs` in ggml-common.h,
`dequantize_row_*` in ggml-quants.c, and the OCP Microscaling Formats specification 1.0 for e2m1, e8m0 and e4m3.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt8

from realm_jax.quant.formats.bits import Blocks, Weights, fields, flatten, nibbles, read_half, read_u16, split

# The 16 values of IQ4_NL and IQ4_XS (kvalues_iq4nl), one signed byte each, four to a word, lowest byte first.
_NONLINEAR_WORDS = (0xBFAD9881, 0xF6EADDCF, 0x26190D01, 0x71594535)
# Twice the magnitudes 0 0.5 1 1.5 2 3 4 6 of e2m1, one nibble each: 0 1 2 3 4 6 8 12.
_E2M1_MAGNITUDES = 0xC8643210


def decode_mxfp4(blocks: Blocks) -> Weights:
    """`w[i] = 2**(e - 128) * v(q[i])` for 32 weights, v twice the e2m1 value of the code.

    ::

        byte  0   1                17
              | e | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4

    e is an e8m0 exponent; its 255, NaN in the specification, is an ordinary power here as it is in ggml. For e = 0 and
    1 the scale is a subnormal float32, which XLA flushes to zero on most backends.
    """
    exponent = blocks[..., :1].astype(jnp.uint32)
    scale_bits = jnp.where(exponent < 2, jnp.uint32(0x00200000) << (exponent & 1), (exponent - 1) << 23)
    values = _e2m1_doubled(flatten(nibbles(blocks[..., 1:])))
    return lax.bitcast_convert_type(scale_bits, jnp.float32) * values


def decode_nvfp4(blocks: Blocks) -> Weights:
    """`w[16 j + i] = ue4m3(d[j]) / 2 * v(q[16 j + i])` for 4 sub-blocks j of 16, v twice the e2m1 value of the code.

    ::

        byte  0      4                36
              | d[4] | qs[32]         |    qs[8 j + i] = q[16 j + i] | q[16 j + 8 + i] << 4

    d is an unsigned e4m3 float, bias 7: its sign bit is not read, and 0x7F counts as zero.
    """
    values = _e2m1_doubled(flatten(nibbles(split(blocks[..., 4:], 4, 8))))
    return flatten(_half_ue4m3(blocks[..., :4])[..., None] * values)


def decode_iq4_nl(blocks: Blocks) -> Weights:
    """`w[i] = d * v(q[i])` for 32 weights, v the nonlinear grid.

    ::

        byte  0   2                18
              | d | qs[16]         |    qs[i] = q[i] | q[i + 16] << 4
    """
    return read_half(blocks[..., :2]) * _nonlinear(flatten(nibbles(blocks[..., 2:])))


def decode_iq4_xs(blocks: Blocks) -> Weights:
    """`w[32 j + i] = d * (scale[j] - 32) * v(q[32 j + i])` for 8 sub-blocks j of 32, v the nonlinear grid.

    ::

        byte  0   2          4           8                136
              | d | scales_h | scales_l[4] | qs[128]      |    qs[16 j + i] = q[32 j + i] | q[32 j + 16 + i] << 4

        scale[j] = nibble j of scales_l | (bits 2 j, 2 j + 1 of scales_h) << 4
    """
    low = flatten(fields(blocks[..., 4:8], bits=4, count=2))
    high = flatten(fields(read_u16(blocks[..., 2:4]), bits=2, count=8)).astype(jnp.uint8)
    scales = read_half(blocks[..., :2]) * ((low | (high << 4)).astype(jnp.int8) - 32).astype(jnp.float32)
    values = _nonlinear(flatten(nibbles(split(blocks[..., 8:], 8, 16))))
    return flatten(scales[..., None] * values)


def _e2m1_doubled(codes: UInt8[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    """Sign and magnitude from bit 3 and bits 2..0: a shift of a constant, which vectorises where a table would not."""
    magnitudes = (jnp.uint32(_E2M1_MAGNITUDES) >> ((codes & 7) * 4).astype(jnp.uint32)).astype(jnp.int8) & 15
    return jnp.where(codes < 8, magnitudes, -magnitudes).astype(jnp.float32)


def _half_ue4m3(raw: UInt8[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    exponent, mantissa = (raw >> 3).astype(jnp.uint32) & 15, raw & 7
    subnormal = mantissa.astype(jnp.float32) * 2.0**-10
    normal = lax.bitcast_convert_type(((exponent + 119) << 23) | (mantissa.astype(jnp.uint32) << 20), jnp.float32)
    return jnp.where(raw == 0x7F, 0.0, jnp.where(exponent == 0, subnormal, normal))


def _nonlinear(codes: UInt8[Array, "*lead n"]) -> Float32[Array, "*lead n"]:
    """Pick one of four words, then its byte with its sign: this vectorises where a table of 16 would not."""
    index = codes.astype(jnp.uint32)
    a, b, c, d = (jnp.uint32(word) for word in _NONLINEAR_WORDS)
    word = jnp.where(index < 8, jnp.where(index < 4, a, b), jnp.where(index < 12, c, d))
    on_top = lax.bitcast_convert_type(word << (24 - 8 * (index & 3)), jnp.int32)
    return (on_top >> 24).astype(jnp.float32)
