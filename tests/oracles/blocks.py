"""Decoding in numpy of the block types that the gguf package cannot decode, from ggml's structures."""

import numpy as np

# block_q1_0, block_q8_1 and block_q8_K of ggml-common.h.
_Q1_0 = np.dtype([("d", "<f2"), ("bits", "u1", 16)])
_Q8_1 = np.dtype([("d", "<f2"), ("s", "<f2"), ("q", "i1", 32)])
_Q8_K = np.dtype([("d", "<f4"), ("q", "i1", 256), ("bsums", "<i2", 16)])


def decode(name: str, blocks: np.ndarray) -> np.ndarray:
    """Decode `uint8[n, type_size]` of the type called `name` to `float32[n, block_size]`."""
    if name == "Q1_0":
        structs = blocks.view(_Q1_0)
        signs = np.where(np.unpackbits(structs["bits"][:, 0], axis=-1, bitorder="little"), 1, -1)
        return structs["d"].astype(np.float32) * signs.astype(np.float32)
    structs = blocks.view(_Q8_K if name == "Q8_K" else _Q8_1)
    return structs["d"].astype(np.float32) * structs["q"][:, 0].astype(np.float32)
