"""Blocks to decode, random and adversarial, and what they must decode to."""

import gguf
import numpy as np
from oracles import blocks as oracle

from realm_jax.gguf import GGMLType

BLOCK_TYPES = tuple(t for t in GGMLType if t.block_size > 1)
NOT_IN_PACKAGE = frozenset({GGMLType.Q1_0, GGMLType.Q8_1, GGMLType.Q8_K})

# Zero, the subnormal halves' least and greatest, the normal ones', one, infinity, a quiet and a signalling NaN.
_SPECIAL_HALVES = (0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x3C00, 0x7C00, 0x7E00, 0x7C01)
_HALF_OFFSETS = {
    **dict.fromkeys(("Q1_0", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S"), (0,)),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q8_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def reference(ggml_type: GGMLType, blocks: np.ndarray) -> np.ndarray:
    """Decode `uint8[n, type_size]` in numpy: by the gguf package where it can, else by the oracle."""
    with np.errstate(all="ignore"):
        if ggml_type in NOT_IN_PACKAGE:
            return oracle.decode(ggml_type.name, blocks)
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(ggml_type))


def random_blocks(ggml_type: GGMLType, count: int) -> np.ndarray:
    """Uniform random bytes, without the blocks whose scales are infinite or NaN."""
    rng = np.random.default_rng(int(ggml_type))
    blocks = rng.integers(0, 256, (2 * count, ggml_type.type_size), dtype=np.uint8)
    finite = blocks[np.isfinite(reference(ggml_type, blocks)).all(axis=-1)]
    assert len(finite) >= count
    return finite[:count]


def adversarial_blocks(ggml_type: GGMLType) -> np.ndarray:
    """Constant blocks, blocks with one byte at an extreme, and every special scale over random codes."""
    constant = np.repeat(np.arange(256, dtype=np.uint8)[:, None], ggml_type.type_size, axis=1)
    return np.concatenate([constant, _one_byte_extreme(ggml_type), _special_scales(ggml_type)])


def _one_byte_extreme(ggml_type: GGMLType) -> np.ndarray:
    values = np.array([0x00, 0x01, 0x0F, 0x7F, 0x80, 0xF0, 0xFF], np.uint8)
    size = ggml_type.type_size
    blocks = np.tile(random_blocks(ggml_type, 1), (len(values) * size, 1)).reshape(len(values), size, size)
    blocks[:, np.arange(size), np.arange(size)] = values[:, None]
    return blocks.reshape(-1, size)


def _special_scales(ggml_type: GGMLType) -> np.ndarray:
    halves = np.array([h | sign for h in _SPECIAL_HALVES for sign in (0, 0x8000)], "<u2")
    blocks = np.tile(random_blocks(ggml_type, 8), (len(halves), 1))
    scales = np.repeat(halves, 8)
    if ggml_type is GGMLType.IQ1_M:
        # Nibble k of its scale lies on top of scale word k.
        words = blocks[:, 48:].view("<u2")
        words[...] = (words & 0x0FFF) | ((scales[:, None] >> (4 * np.arange(4, dtype=np.uint16))) << 12)
        return blocks
    versions = [blocks[:0]]
    for offset in _HALF_OFFSETS.get(ggml_type.name, ()):
        version = blocks.copy()
        version[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
        versions.append(version)
    return np.concatenate(versions)
