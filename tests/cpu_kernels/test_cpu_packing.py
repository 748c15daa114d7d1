"""Packing into tiles: what the tiles stand for, how much they take, and how rows are looked up in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import FORMATS, WIDE_TILES, block_size, blocks_of, codebook, decoded, pack

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_tiles_stand_for_the_file_s_weights(kind: str, rows: int) -> None:
    columns = 3 * block_size(kind)
    blocks = blocks_of(kind, rows, columns)
    packed = pack(kind, blocks, columns)
    assert packed.shape == cpu_kernels.tiled_shape(kind, (rows, columns))
    weights = np.asarray(jax.jit(cpu_kernels.unpack, static_argnums=(1, 2))(packed, kind, (rows, columns)))
    np.testing.assert_array_equal(weights, decoded(kind, blocks))


@pytest.mark.parametrize("kind", FORMATS)
def test_tiles_take_little_more_than_the_file(kind: str) -> None:
    rows, columns = 320, 2048
    packed = pack(kind, blocks_of(kind, rows, columns), columns)
    assert packed.ctypes.data % 64 == 0
    if kind in WIDE_TILES:
        assert packed.nbytes == WIDE_TILES[kind] * rows * columns / 8
    else:
        assert packed.nbytes <= 1.06 * blocks_of(kind, rows, columns).nbytes


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_looked_up_without_decoding_the_rest(kind: str) -> None:
    rows, columns = 37, 3 * block_size(kind)
    packed = jnp.asarray(pack(kind, blocks_of(kind, rows, columns), columns))
    weights = jax.jit(cpu_kernels.unpack, static_argnums=(1, 2))(packed, kind, (rows, columns))
    ids = jnp.array([[0, 36, 17], [15, 16, 400]])
    taken = jax.jit(cpu_kernels.take_rows, static_argnums=(1, 2))(packed, kind, (rows, columns), ids)
    np.testing.assert_array_equal(taken, weights[jnp.clip(ids, 0, rows - 1)])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_multiplies_by_the_same_weights(kind: str) -> None:
    rows, columns = 37, 3 * block_size(kind)
    packed = jnp.asarray(pack(kind, blocks_of(kind, rows, columns), columns))
    weights = np.asarray(cpu_kernels.unpack(packed, kind, (rows, columns)), np.float64)
    x = np.random.default_rng(1).normal(size=(2, 3, columns)).astype(np.float32)
    y = cpu_kernels.reference_matmul(jnp.asarray(x), packed, kind, (rows, columns))
    # Sums of float32 products in any order.
    bound = (columns + 2) * 2.0**-24 * (np.abs(x) @ np.abs(weights).T)
    np.testing.assert_array_less(np.abs(y - x @ weights.T), bound + 1e-30)


def test_leading_axes_are_matrices_of_their_own() -> None:
    blocks = blocks_of("Q4_K", 60, 256).reshape(3, 20, -1)
    packed = cpu_kernels.pack("Q4_K", blocks, 256)
    assert packed.shape == cpu_kernels.tiled_shape("Q4_K", (3, 20, 256))
    for one, whole in zip(blocks, packed, strict=True):
        np.testing.assert_array_equal(cpu_kernels.pack("Q4_K", one, 256), whole)


def test_a_large_matrix_is_packed_by_several_threads_alike() -> None:
    blocks = np.tile(blocks_of("Q8_0", 512, 1024), (16, 1))
    packed = cpu_kernels.pack("Q8_0", blocks, 1024)
    np.testing.assert_array_equal(packed, np.tile(cpu_kernels.pack("Q8_0", blocks[:512], 1024), (16, 1)))


def test_special_scales_survive() -> None:
    """Subnormal, largest, infinite and NaN halves, of either sign, as scales that need no folding."""
    halves = np.array([0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7E00], np.uint16)
    halves = np.concatenate([halves, halves | 0x8000])
    blocks = np.array(blocks_of("Q4_0", len(halves), 32))
    blocks[:, :2] = halves[:, None].view(np.uint8)
    packed = jnp.asarray(cpu_kernels.pack("Q4_0", blocks, 32))
    with np.errstate(invalid="ignore"):
        expected = decoded("Q4_0", blocks)
    np.testing.assert_array_equal(cpu_kernels.unpack(packed, "Q4_0", (len(halves), 32)), expected)


def test_the_largest_and_smallest_scales_of_super_blocks_are_exact() -> None:
    """Products of d and its factors of up to eight bits exceed float16 at either end."""
    for kind, offsets in (("Q4_K", (0, 2)), ("Q6_K", (208,)), ("IQ2_S", (0,)), ("Q2_K", (80, 82))):
        blocks = np.array(blocks_of(kind, 37, 256))
        for offset in offsets:
            halves = np.array([0x7BFF, 0x0001, 0x03FF, 0xFBFF, 0x8001], np.uint16)[np.arange(37) % 5]
            blocks[:, offset : offset + 2] = halves[:, None].view(np.uint8)
        packed = jnp.asarray(pack(kind, blocks, 256))
        np.testing.assert_array_equal(cpu_kernels.unpack(packed, kind, (37, 256)), decoded(kind, blocks))


def test_every_scale_of_float4_formats() -> None:
    """All 256 bytes: exponents of MXFP4, of which the two subnormal ones count as zero, and e4m3 scales of NVFP4."""
    for kind, scales in (("MXFP4", 1), ("NVFP4", 4)):
        columns = block_size(kind)
        blocks = np.array(blocks_of(kind, 256, columns))
        blocks[:, :scales] = np.arange(256)[:, None]
        weights = np.asarray(cpu_kernels.unpack(jnp.asarray(pack(kind, blocks, columns)), kind, (256, columns)))
        with np.errstate(over="ignore"):
            expected = decoded(kind, blocks)
        if kind == "MXFP4":
            expected[:2] = 0
        np.testing.assert_array_equal(weights, expected)


def test_errors_name_the_rule() -> None:
    with pytest.raises(ValueError, match="formats with tiles are Q1_0, .*, got F64"):
        cpu_kernels.pack("F64", np.zeros((1, 64), np.uint8), 32)
    with pytest.raises(ValueError, match=r"codebook of IQ2_S must have the shape \(1024, 8\), got None"):
        cpu_kernels.pack("IQ2_S", np.zeros((1, 82), np.uint8), 256)
    with pytest.raises(ValueError, match=r"codebook of IQ2_S must have the shape \(1024, 8\), got \(512, 8\)"):
        cpu_kernels.pack("IQ2_S", np.zeros((1, 82), np.uint8), 256, codebook("IQ2_XS"))
    with pytest.raises(ValueError, match="codebook of Q8_0 must have the shape None"):
        cpu_kernels.pack("Q8_0", np.zeros((1, 34), np.uint8), 32, codebook("IQ2_XS"))
    with pytest.raises(ValueError, match="columns must be a multiple of 32, got 40"):
        cpu_kernels.tiled_shape("Q8_0", (1, 40))
    with pytest.raises(ValueError, match="64 columns of Q8_0 must be 68 bytes a row, got 34"):
        cpu_kernels.pack("Q8_0", np.zeros((1, 34), np.uint8), 64)
