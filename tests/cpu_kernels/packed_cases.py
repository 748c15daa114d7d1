"""Packed weights and activations to multiply, and the bound within which a product must lie."""

from functools import cache

import gguf
import ml_dtypes
import numpy as np
from oracles import blocks as oracle

import cpu_kernels
from realm_jax.gguf import GGMLType

FORMATS = tuple(cpu_kernels.FORMATS)

NOT_IN_PACKAGE = frozenset({"Q1_0", "Q8_1", "Q8_K"})

# What may take more bytes than a tenth over the file's, in bits a weight: formats of few bits that are rarely used.
WIDE_TILES = {"TQ1_0": 2.125, **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), 4.625)}
WIDE_TILES |= dict.fromkeys(("IQ3_XXS", "IQ3_S"), 4.375)

_HALVES = {
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    **dict.fromkeys(("IQ1_M", "MXFP4", "NVFP4", "Q8_K"), ()),
}


_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def block_size(kind: str) -> int:
    """Columns of a block; of plain floats a number of them that fills no group of a tile."""
    return 41 if kind in _PLAIN else GGMLType[kind].block_size


def type_size(kind: str) -> int:
    return GGMLType[kind].type_size * block_size(kind) // GGMLType[kind].block_size


@cache
def blocks_of(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random blocks, `uint8[rows, row_bytes]`: every code, sub-scale and sign occurs; scales are those of weights."""
    rng = np.random.default_rng([rows, columns])
    if kind in _PLAIN:
        return rng.normal(0, 0.01, (rows, columns)).astype(_PLAIN[kind]).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, columns // block_size(kind), type_size(kind)), dtype=np.uint8)
    scales = rng.normal(0, 0.01, (2, *blocks.shape[:2])).astype(np.float16)
    for offset, scale in zip(_HALVES.get(kind, (0,)), scales, strict=False):
        blocks[..., offset : offset + 2] = scale[..., None].view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(112, 128, blocks.shape[:2])
    elif kind == "Q8_K":
        blocks[..., :4] = scales[0].astype(np.float32)[..., None].view(np.uint8)
    elif kind == "IQ1_M":
        nibbles = scales[0].view(np.uint16)[..., None] >> (4 * np.arange(4, dtype=np.uint16))
        words = blocks[..., 48:].view(np.uint16)
        words[...] = (words & 0x0FFF) | (nibbles << 12)
    return blocks.reshape(rows, -1)


def codebook(kind: str) -> np.ndarray | None:
    """The gguf package's grid of a format, its values numbered in ascending order."""
    if kind not in cpu_kernels.CODEBOOKS:
        return None
    quant = getattr(gguf.quants, kind)
    quant.init_grid()
    return np.unique(quant.grid[0, 0], return_inverse=True)[1].reshape(quant.grid[0, 0].shape).astype(np.uint8)


def pack(kind: str, blocks: np.ndarray, columns: int) -> np.ndarray:
    return cpu_kernels.pack(kind, blocks, columns, codebook(kind))


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The file's weights, by the gguf package where it can, else by the oracle."""
    if kind in NOT_IN_PACKAGE:
        return oracle.decode(kind, blocks.reshape(-1, type_size(kind))).reshape(len(blocks), -1)
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def minima(kind: str, blocks: np.ndarray) -> np.ndarray | float:
    """Magnitudes of what the weights have added to the product of scale and code, which may cancel it."""
    if kind not in ("Q2_K", "Q4_K", "Q5_K"):
        return 0.0
    flipped = blocks.copy().reshape(len(blocks), -1, type_size(kind))
    flipped[..., _HALVES[kind][1] + 1] ^= 0x80  # the sign bit of dmin
    return np.abs(decoded(kind, flipped.reshape(len(blocks), -1)) - decoded(kind, blocks)) / 2


def error_bound(x: np.ndarray, weights: np.ndarray, minima: np.ndarray | float) -> np.ndarray:
    """How far the product may lie from the exact one of float activations with the file's weights, `[tokens, rows]`.

    Half a step of each group's 8-bit activations times the magnitudes of its weights, and float32 rounding. A weight
    `s q + m` enters as two parts, of magnitudes up to |w| + |m| and |m|, each for one or two halves of a group: four
    additions to an accumulator that the sum of all parts bounds, and three roundings of a part itself.
    """
    x = np.abs(x.astype(np.float64))
    magnitudes = np.abs(weights.astype(np.float64))
    steps = x.reshape(len(x), -1, 32).max(axis=-1) / 127
    quantised = (steps / 2) @ magnitudes.reshape(len(weights), -1, 32).sum(axis=-1).T
    whole = np.repeat(steps, 32, axis=-1) / 2 + x
    rounding = (4 * x.shape[1] / 32 + 8) * 2.0**-24 * (whole @ (magnitudes + 2 * minima).T)
    # 1e-3: the quotients by which activations are scaled are rounded, so a tie may fall to the farther side.
    return (1 + 1e-3) * quantised + 2 * rounding + 1e-30


def plain_error_bound(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same where nothing is rounded to 8 bits: each product is added to one of two sums of half the columns."""
    magnitudes = np.abs(x.astype(np.float64)) @ np.abs(weights.astype(np.float64)).T
    return (x.shape[1] / 2 + 2) * 2.0**-24 * magnitudes + 1e-30
