"""The inline assembly of the CUDA kernels against its jnp form, on every byte and every half float."""

import jax.numpy as jnp
import numpy as np
import ptx
import pytest

from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.triton_codes import (
    byte_assembly,
    code_assembly,
    code_tile,
    group_scale,
    scaled,
    scaled_assembly,
    word_assembly,
    word_half,
)


def bfloat16_pair(word: np.ndarray) -> np.ndarray:
    """The two values of each register, `float32[n, 2]`."""
    halves = np.stack([word & 0xFFFF, word >> 16], axis=-1).astype(np.uint16)
    return np.asarray(halves.view(jnp.bfloat16), np.float32)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_codes_equal_the_jnp_form(kind: str, exact: bool) -> None:
    """Four bytes a register; the planes' bytes are paired at random, with every byte in every plane."""
    form, rng = FORMATS[kind], np.random.default_rng(0)
    planes = [np.concatenate([rng.permutation(256) for _ in range(16)]).astype(np.uint8) for _ in form.planes]
    for group in range(form.fields):
        words = {f"${2 + i}": plane.view("<u4") for i, plane in enumerate(planes)}
        after = ptx.run(code_assembly(form, group, exact=exact), words)
        values = np.concatenate([bfloat16_pair(after["$0"]), bfloat16_pair(after["$1"])], axis=-1).reshape(-1)
        tiles = [jnp.asarray(plane) for plane in planes]
        expected = code_tile(tiles, form, group, exact=exact, assembly=False)
        np.testing.assert_array_equal(values, np.asarray(expected, np.float32))


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("kind", ["Q4_K", "MXFP4"])
def test_scales_equal_the_jnp_form(kind: str, high: bool) -> None:
    halves = np.arange(2**16, dtype=np.uint32)
    finite = halves[np.isfinite(halves.astype(np.uint16).view(np.float16)) & (halves & 0x7FFF >= 0x0080)]
    words = finite << 16 | 0x3C01 if high else finite | 0x3C010000
    after = ptx.run(word_assembly(FORMATS[kind], high), {"$1": words})
    expected = word_half(jnp.asarray(words), FORMATS[kind], high, assembly=False)
    np.testing.assert_array_equal(after["$0"].view(np.float32), expected)


@pytest.mark.parametrize("offset", [False, True])
def test_scaled_codes_equal_the_jnp_form(offset: bool) -> None:
    rng = np.random.default_rng(1)
    values = [np.asarray(rng.integers(-128, 128, 4096), jnp.bfloat16)]
    values += [np.asarray(rng.normal(size=4096), jnp.bfloat16) for _ in range(1 + offset)]
    words = {f"${1 + i}": value.view("<u4") for i, value in enumerate(values)}
    after = ptx.run(scaled_assembly(offset), words)
    args = [jnp.asarray(value) for value in values]
    expected = scaled(args[0], args[1], args[2] if offset else None, assembly=False)
    np.testing.assert_array_equal(bfloat16_pair(after["$0"]).reshape(-1), np.asarray(expected, np.float32))


@pytest.mark.parametrize("byte", range(4))
def test_bytes_become_floats(byte: int) -> None:
    """Every byte below 128, in a word with any other bits."""
    own = np.arange(2**16, dtype=np.uint32) % 128
    others = np.random.default_rng(2).integers(2**32, size=own.shape, dtype=np.uint32)
    shift = np.uint32(8 * byte)
    words = others & ~(np.uint32(0xFF) << shift) | own << shift
    after = ptx.run(byte_assembly(byte), {"$1": words})
    np.testing.assert_array_equal(after["$0"].view(np.float32), 128.0 + own)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_scales_of_scales_are_exact(kind: str) -> None:
    """Of each group of 256 weights: integers of a byte times a half float."""
    form, rng = FORMATS[kind], np.random.default_rng(3)
    own = rng.integers(256 if form.offset else 64, size=(64, 16), dtype=np.uint8)
    factors = rng.normal(size=(64, 2)).astype(np.float16)
    words = [jnp.asarray(column) for column in own.view("<u4").T]
    words.append(jnp.asarray(factors.view("<u4")[:, 0]))
    for t in range(16):
        scale, offset = group_scale(tuple(words), form, t, 16, assembly=False)
        small = own[:, t] & 15 if form.offset else own[:, t].astype(np.int32) - 32
        np.testing.assert_array_equal(scale, small * factors[:, 0].astype(np.float32))
        if offset is not None:
            np.testing.assert_array_equal(offset, (own[:, t] >> 4) * factors[:, 1].astype(np.float32))
