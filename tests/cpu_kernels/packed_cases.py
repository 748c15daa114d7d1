"""Packed weights and activations to multiply, and the bound within which a product must lie."""

from functools import cache

import gguf
import numpy as np

import cpu_kernels

FORMATS = tuple(cpu_kernels.FORMATS)

# What packing may round: the folded scales of K-quants, each by half a unit in the last of float16's 11 bits.
SCALE_ROUNDING = {name: 2.0**-11 if name.endswith("_K") else 0.0 for name in FORMATS}


def block_size(kind: str) -> int:
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


def type_size(kind: str) -> int:
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]


@cache
def blocks_of(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random blocks, `uint8[rows, row_bytes]`: every code, sub-scale and sign occurs; scales are those of weights."""
    rng = np.random.default_rng([rows, columns])
    blocks = rng.integers(0, 256, (rows, columns // block_size(kind), type_size(kind)), dtype=np.uint8)
    at = {"Q6_K": (208,)}.get(kind, (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,))
    for offset in at:
        scales = rng.normal(0, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The file's weights, by the gguf package."""
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def decoding_error(kind: str, blocks: np.ndarray) -> np.ndarray:
    """How far the packed weight may lie from the file's: the rounding of its scale times its code, and of its minimum.

    A weight `d s q - dmin m` may be small where both parts are large, so the bound is taken from the parts: the
    magnitudes of the two are the weight with the minima's sign turned and with it kept.
    """
    flipped = blocks.copy().reshape(len(blocks), -1, type_size(kind))
    if kind in ("Q4_K", "Q5_K"):
        flipped[..., 3] ^= 0x80  # the sign bit of dmin
    both = np.abs(decoded(kind, flipped.reshape(len(blocks), -1))) + np.abs(decoded(kind, blocks))
    # The larger of |a + b| and |a - b| is |a| + |b|; their sum is at least that. One more 2^-22 for float32 arithmetic.
    return both * (SCALE_ROUNDING[kind] + 2.0**-22)


def error_bound(x: np.ndarray, weights: np.ndarray, weight_error: np.ndarray) -> np.ndarray:
    """How far the product may lie from the exact one of float activations with the file's weights, `[tokens, rows]`.

    Half a step of each group's 8-bit activations times the magnitudes of its weights, the weights' own rounding, and
    float32 rounding: two operations a group on an accumulator, whose magnitude sum |x w| bounds.
    """
    x, magnitudes = np.abs(x.astype(np.float64)), np.abs(weights.astype(np.float64)) + weight_error
    steps = x.reshape(len(x), -1, 32).max(axis=-1) / 127
    quantised = (steps / 2) @ magnitudes.reshape(len(weights), -1, 32).sum(axis=-1).T
    whole = np.repeat(steps, 32, axis=-1) / 2 + x
    rounding = (4 * x.shape[1] / 32 + 8) * 2.0**-24 * (whole @ magnitudes.T)
    # 1e-3: the quotients by which activations are scaled are rounded, so a tie may fall to the farther side.
    return (1 + 1e-3) * quantised + x @ weight_error.T + 2 * rounding + 1e-30
