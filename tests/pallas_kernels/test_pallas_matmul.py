"""quantized_matmul of the Pallas kernels, interpreted, against products with weights that the gguf package decodes."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quant.block_cases import random_blocks

import pallas_kernels.quantized_matmul as kernels
from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.blocks import BLOCKS, read_groups
from pallas_kernels.quantized_matmul.cases import SMALL_CASES, MatmulCase
from pallas_kernels.quantized_matmul.config import DecodeConfig
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_decode import decode_matmul
from realm_jax.gguf import GGMLType

BACKENDS: tuple[Backend, ...] = ("triton", "tpu")
BFLOAT16, HALF, FLOAT32 = 2.0**-8, 2.0**-11, 2.0**-24  # half a unit in the last place, relative


def blocks_of(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random blocks whose scales are of the sizes that real weights have."""
    rng = np.random.default_rng(rows + columns)
    ggml_type = GGMLType[kind]
    if kind in ("IQ4_XS", "MXFP4", "NVFP4", "IQ4_NL"):
        blocks = random_blocks(ggml_type, rows * columns // ggml_type.block_size)
        if kind == "MXFP4":
            blocks[:, 0] = blocks[:, 0] % 16 + 110
        elif kind != "NVFP4":
            blocks[:, :2] = rng.normal(size=len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
        return blocks.reshape(rows, -1)
    if ggml_type.block_size == 32:
        values = rng.normal(size=(rows, columns)).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = random_blocks(ggml_type, rows * columns // ggml_type.block_size)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]
    for at in halves:
        scales = rng.normal(size=len(blocks)).astype("<f2") * np.float16(0.01)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).astype(np.float64)


def stored_case(kind: str, rows: int, columns: int, backend: Backend) -> tuple[np.ndarray, Stored]:
    blocks = blocks_of(kind, rows, columns)
    return blocks, tuple(jnp.asarray(part) for part in kernels.pack(kind, blocks, columns, backend))


def magnitudes(kind: str, blocks: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `scale v(code)` and of the offset, `[rows, columns]` each."""
    offsets = scales_and_offsets(kind, blocks)[1]
    return np.abs(weights - offsets), np.abs(offsets)


def scales_and_offsets(kind: str, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each weight, `float64[rows, columns]`."""
    read, form = read_groups(kind, blocks), kernels.FORMATS[kind]
    scales = read.scales.astype(np.float64)
    offsets = np.zeros_like(scales) if read.offsets is None else read.offsets.astype(np.float64)
    if read.supers is not None:
        scales, offsets = (np.repeat(part, 16, axis=-1) for part in (scales, offsets))
        own = read.supers.astype(np.float64)
        scales = scales * (own % 16 if form.offset else own - 32)
        offsets = offsets * (own // 16)
    return np.repeat(scales, form.group, axis=-1), np.repeat(offsets, form.group, axis=-1)


def activations(tokens: int, columns: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(tokens).normal(size=(tokens, columns)), jnp.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", kernels.FORMATS)
def test_the_layout_keeps_the_weight(kind: str, backend: Backend) -> None:
    rows, columns = 37, 512
    blocks, stored = stored_case(kind, rows, columns, backend)
    weights = decoded(kind, blocks)
    unpacked = np.asarray(kernels.unpack(stored, kind, (rows, columns), backend), np.float64)
    if kind in ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS"):
        # Products of two scales are rounded to half floats, once; below the normal ones to multiples of 2^-24.
        scaled, offsets = magnitudes(kind, blocks, weights)
        smallest = 2.0**-25 * (np.where(offsets > 0, 1, 0) + 2.0 ** kernels.FORMATS[kind].bits * 8)
        np.testing.assert_array_less(np.abs(unpacked - weights), 1.01 * HALF * (scaled + offsets) + smallest)
    else:
        np.testing.assert_array_equal(unpacked, weights)
    ids = jnp.asarray([[3, 0], [36, 3]])
    looked_up = kernels.take_rows(stored, kind, (rows, columns), ids, backend)
    np.testing.assert_array_equal(looked_up, unpacked.astype(np.float32)[np.asarray(ids)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", kernels.FORMATS)
def test_stored_bytes_are_few(kind: str, backend: Backend) -> None:
    columns = 4096
    stored = kernels.stored_shapes(kind, (4096, columns), backend)
    weights, size = BLOCKS[kind]
    total = sum(array.size * array.dtype.itemsize for array in stored)
    assert total <= 1.15 * 4096 * columns // weights * size
    packed = kernels.pack(kind, blocks_of(kind, 37, 512), 512, backend)
    described = kernels.stored_shapes(kind, (37, 512), backend)
    assert [(a.shape, a.dtype) for a in packed] == [(a.shape, a.dtype) for a in described]


def rounding(kind: str, backend: Backend, tokens: int, blocks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far a product with each weight may be off, per unit of its activation, `[rows, columns]`."""
    scaled, offsets = magnitudes(kind, blocks, weights)
    columns = weights.shape[1]
    form = kernels.FORMATS[kind]
    if tokens <= 16 and (backend == "triton" or (form.paired and not form.supers)):
        # Exact products of codes, which still hold their bias of 128; sums of as many terms as columns.
        scales = np.abs(scales_and_offsets(kind, blocks)[0])
        return columns * FLOAT32 * (scaled + offsets + 2 * (128 + form.zero) * scales)
    # The weight rounded to bfloat16, on CUDA with its scale and offset rounded before that; one percent for
    # the products of such errors.
    narrow = np.abs(weights) if backend == "tpu" else np.abs(weights) + scaled + offsets
    return 1.01 * BFLOAT16 * narrow + columns * FLOAT32 * (scaled + offsets)


def assert_close(kind: str, backend: Backend, x: jax.Array, blocks: np.ndarray, y: jax.Array) -> None:
    """Within the bound of the exact product with what the layout keeps."""
    rows, columns = len(blocks), x.shape[1]
    stored = tuple(jnp.asarray(part) for part in kernels.pack(kind, blocks, columns, backend))
    weights = np.asarray(kernels.unpack(stored, kind, (rows, columns), backend), np.float64)
    wide = np.asarray(x, np.float64)
    exact = wide @ weights.T
    bound = np.abs(wide) @ rounding(kind, backend, len(x), blocks, weights).T
    if x.dtype == jnp.bfloat16:
        bound += BFLOAT16 * (np.abs(exact) + bound)
    else:
        # Two bfloat16 hold a float32 to 2^-16, and the sum of their products is rounded once.
        bound = 2 * bound + 2.0**-16 * np.abs(wide) @ np.abs(weights).T + FLOAT32 * np.abs(exact)
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), bound + 1e-30)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_products_lie_within_the_derived_bound(case: MatmulCase, backend: Backend) -> None:
    shape = (case.rows, case.columns)
    blocks, stored = stored_case(case.kind, *shape, backend)
    x = activations(case.tokens, case.columns)
    y = kernels.quantized_matmul(x, stored, case.kind, shape, backend=backend, interpret=True)
    assert (y.shape, y.dtype) == ((case.tokens, case.rows), jnp.bfloat16)
    assert_close(case.kind, backend, x, blocks, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "columns"), [(2, 32), (13, 96), (2, 1280)])
def test_any_number_of_groups_and_blocks(tokens: int, columns: int, backend: Backend) -> None:
    check_any_number("Q5_1", tokens, columns, backend)


# Blocks of a TPU have 256, 512 and 1,024 columns of these: the scales of one fill a part of a register, one, or two.
@pytest.mark.parametrize("columns", [1280, 1536, 2048])
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q6_K"])
def test_blocks_whose_scales_share_a_register(kind: str, columns: int) -> None:
    check_any_number(kind, 2, columns, "tpu")


def check_any_number(kind: str, tokens: int, columns: int, backend: Backend) -> None:
    rows = 130
    blocks, stored = stored_case(kind, rows, columns, backend)
    x = activations(tokens, columns)
    y = kernels.quantized_matmul(x, stored, kind, (rows, columns), backend=backend, interpret=True)
    assert_close(kind, backend, x, blocks, y)


def test_split_columns_add_up() -> None:
    """Five trips in one block or in five, and the groups that are left over in the last."""
    kind, rows, columns = "Q4_1", 32, 1344
    blocks, stored = stored_case(kind, rows, columns, "triton")
    x = activations(8, columns)
    for splits in (1, 5):
        config = DecodeConfig(groups=8, splits=splits)
        y = decode_matmul(x, stored, kernels.FORMATS[kind], config, assembly=False, interpret=True)
        assert_close(kind, "triton", x, blocks, y.T.astype(jnp.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_activations_keep_sixteen_bits(backend: Backend) -> None:
    kind, rows, columns = "Q4_0", 32, 256
    blocks, stored = stored_case(kind, rows, columns, backend)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, columns)), jnp.float32)
    y = kernels.quantized_matmul(x, stored, kind, (rows, columns), backend=backend, interpret=True)
    assert y.dtype == jnp.float32
    assert_close(kind, backend, x, blocks, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_are_those_of_the_decoded_weight(backend: Backend) -> None:
    kind, rows, columns = "Q4_K", 37, 256
    blocks, stored = stored_case(kind, rows, columns, backend)
    weights = np.asarray(kernels.unpack(stored, kind, (rows, columns), backend), np.float64)
    x, seed = (activations(3, n).astype(jnp.float32) for n in (columns, rows))

    def multiply(x: jax.Array) -> jax.Array:
        return kernels.quantized_matmul(x, stored, kind, (rows, columns), backend=backend, interpret=True)

    _, pull = jax.vjp(multiply, x)
    bound = (rows + 2) * FLOAT32 * (np.abs(np.asarray(seed, np.float64)) @ np.abs(weights))
    exact = np.asarray(seed, np.float64) @ weights
    np.testing.assert_array_less(np.abs(np.asarray(pull(seed)[0], np.float64) - exact), bound + 1e-30)
    _, tangent = jax.jvp(multiply, (x,), (x,))
    exact = np.asarray(x, np.float64) @ weights.T
    bound = (columns + 2) * FLOAT32 * (np.abs(np.asarray(x, np.float64)) @ np.abs(weights).T)
    np.testing.assert_array_less(np.abs(np.asarray(tangent, np.float64) - exact), bound + 1e-30)


def test_a_batch_of_matrices_packs_one_by_one() -> None:
    kind, columns = "Q6_K", 256
    blocks = blocks_of(kind, 6, columns)
    together = kernels.pack(kind, blocks.reshape(2, 3, -1), columns, "triton")
    for i in range(2):
        for part, alone in zip(together, kernels.pack(kind, blocks[3 * i : 3 * i + 3], columns, "triton"), strict=True):
            np.testing.assert_array_equal(part[i], alone)
    unpacked = kernels.unpack(tuple(jnp.asarray(part) for part in together), kind, (3, columns), "triton")
    assert unpacked.shape == (2, 3, columns)


def test_errors_name_the_rule() -> None:
    _, stored = stored_case("Q8_0", 8, 64, "triton")
    with pytest.raises(ValueError, match="x must end in the weight's 64 columns, got shape"):
        kernels.quantized_matmul(jnp.zeros((1, 32)), stored, "Q8_0", (8, 64), backend="triton")
    with pytest.raises(ValueError, match="96 columns of Q8_0 must be whole blocks of 34 bytes, got 68"):
        kernels.pack("Q8_0", blocks_of("Q8_0", 8, 64), 96, "triton")
    huge = blocks_of("Q4_K", 1, 256)
    huge[:, :2] = np.array([60000], "<f2").view(np.uint8)
    with pytest.raises(ValueError, match="scales must be at most 65504 for this layout"):
        kernels.pack("Q4_K", huge, 256, "triton")
    assert kernels.quantized_matmul(jnp.zeros((0, 64)), stored, "Q8_0", (8, 64), backend="triton").shape == (0, 8)
