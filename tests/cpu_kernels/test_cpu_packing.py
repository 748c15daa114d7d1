"""Packing into tiles: what the tiles stand for, how much they take, and how rows are looked up in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import FORMATS, SCALE_ROUNDING, block_size, blocks_of, decoded, decoding_error, type_size

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_tiles_stand_for_the_file_s_weights(kind: str, rows: int) -> None:
    columns = 3 * block_size(kind)
    blocks = blocks_of(kind, rows, columns)
    packed = cpu_kernels.pack(kind, blocks, columns)
    assert packed.shape == cpu_kernels.tiled_shape(kind, (rows, columns))
    weights = np.asarray(jax.jit(cpu_kernels.unpack, static_argnums=(1, 2))(packed, kind, (rows, columns)))
    if SCALE_ROUNDING[kind]:
        difference = np.abs(weights.astype(np.float64) - decoded(kind, blocks))
        assert (difference <= decoding_error(kind, blocks)).all()
    else:
        np.testing.assert_array_equal(weights, decoded(kind, blocks))


@pytest.mark.parametrize("kind", FORMATS)
def test_tiles_take_little_more_than_the_file(kind: str) -> None:
    rows, columns = 320, 2048
    packed = cpu_kernels.pack(kind, blocks_of(kind, rows, columns), columns)
    assert packed.ctypes.data % 64 == 0
    assert packed.nbytes <= (1.12 if kind == "Q4_K" else 1.10) * blocks_of(kind, rows, columns).nbytes


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_looked_up_without_decoding_the_rest(kind: str) -> None:
    rows, columns = 37, 3 * block_size(kind)
    packed = jnp.asarray(cpu_kernels.pack(kind, blocks_of(kind, rows, columns), columns))
    weights = cpu_kernels.unpack(packed, kind, (rows, columns))
    ids = jnp.array([[0, 36, 17], [15, 16, 400]])
    taken = cpu_kernels.take_rows(packed, kind, (rows, columns), ids)
    np.testing.assert_array_equal(taken, weights[jnp.clip(ids, 0, rows - 1)])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_multiplies_by_the_same_weights(kind: str) -> None:
    rows, columns = 37, 3 * block_size(kind)
    packed = jnp.asarray(cpu_kernels.pack(kind, blocks_of(kind, rows, columns), columns))
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


@pytest.mark.parametrize(("kind", "d", "scales"), [("Q4_K", 0, 4), ("Q5_K", 2, 4), ("Q6_K", 208, 192)])
def test_scales_beyond_float16_are_refused(kind: str, d: int, scales: int) -> None:
    block = np.zeros(type_size(kind), np.uint8)
    block[scales : scales + 12] = 0x3F
    block[d : d + 2] = np.array([60000], np.float16).view(np.uint8)
    with pytest.raises(cpu_kernels.ScaleOverflowError, match="must stay within float16"):
        cpu_kernels.pack(kind, block[None], 256)


def test_errors_name_the_rule() -> None:
    with pytest.raises(ValueError, match="formats with tiles are Q4_0, .*, got IQ2_S"):
        cpu_kernels.pack("IQ2_S", np.zeros((1, 82), np.uint8), 256)
    with pytest.raises(ValueError, match="columns must be a multiple of 32, got 40"):
        cpu_kernels.tiled_shape("Q8_0", (1, 40))
    with pytest.raises(ValueError, match="64 columns of Q8_0 must be 68 bytes a row, got 34"):
        cpu_kernels.pack("Q8_0", np.zeros((1, 34), np.uint8), 64)
