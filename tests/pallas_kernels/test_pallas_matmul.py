"""quantized_matmul of the Pallas kernels, interpreted, against products with weights that the gguf package decodes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matmul_inputs import (
    FLOAT32,
    HALF,
    activations,
    assert_close,
    blocks_of,
    decoded,
    magnitudes,
    multiply_interpreted,
    stored_case,
)

import pallas_kernels.quantized_matmul as kernels
from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.blocks import BLOCKS
from pallas_kernels.quantized_matmul.cases import SMALL_CASES, MatmulCase
from pallas_kernels.quantized_matmul.config import DecodeConfig
from pallas_kernels.quantized_matmul.triton_decode import decode_matmul

BACKENDS: tuple[Backend, ...] = ("triton", "tpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", kernels.FORMATS)
def test_the_layout_keeps_the_weight(kind: str, backend: Backend) -> None:
    rows, columns = 37, 512
    blocks, stored = stored_case(kind, rows, columns, backend)
    weights = decoded(kind, blocks)
    shape = (rows, columns)
    unpacked = np.asarray(jax.jit(kernels.unpack, static_argnums=(1, 2, 3))(stored, kind, shape, backend), np.float64)
    if kind in ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS"):
        # Products of two scales are rounded to half floats, once; below the normal ones to multiples of 2^-24.
        scaled, offsets = magnitudes(kind, blocks, weights)
        smallest = 2.0**-25 * (np.where(offsets > 0, 1, 0) + 2.0 ** kernels.FORMATS[kind].bits * 8)
        np.testing.assert_array_less(np.abs(unpacked - weights), 1.01 * HALF * (scaled + offsets) + smallest)
    else:
        np.testing.assert_array_equal(unpacked, weights)
    ids = jnp.asarray([[3, 0], [36, 3]])
    looked_up = jax.jit(kernels.take_rows, static_argnums=(1, 2, 4))(stored, kind, shape, ids, backend)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_products_lie_within_the_derived_bound(case: MatmulCase, backend: Backend) -> None:
    shape = (case.rows, case.columns)
    blocks, stored = stored_case(case.kind, *shape, backend)
    x = activations(case.tokens, case.columns)
    y = multiply_interpreted(x, stored, case.kind, shape, backend)
    assert (y.shape, y.dtype) == ((case.tokens, case.rows), jnp.bfloat16)
    assert_close(case.kind, backend, x, blocks, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "columns"), [(2, 32), (13, 96), (2, 1280)])
def test_any_number_of_groups_and_blocks(tokens: int, columns: int, backend: Backend) -> None:
    check_any_number("Q5_1", tokens, columns, backend)


# Blocks of a TPU have 256, 512 and 1,024 columns of these: the scales of one fill a part of a register, one, or two.
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        *(("Q2_K", 1280), ("Q3_K", 1536), ("Q6_K", 2048)),
        *(pytest.param("Q2_K", columns, marks=pytest.mark.slow) for columns in (1536, 2048)),
        *(pytest.param("Q3_K", columns, marks=pytest.mark.slow) for columns in (1280, 2048)),
        *(pytest.param("Q6_K", columns, marks=pytest.mark.slow) for columns in (1280, 1536)),
    ],
)
def test_blocks_whose_scales_share_a_register(kind: str, columns: int) -> None:
    check_any_number(kind, 2, columns, "tpu")


def check_any_number(kind: str, tokens: int, columns: int, backend: Backend) -> None:
    rows = 130
    blocks, stored = stored_case(kind, rows, columns, backend)
    x = activations(tokens, columns)
    y = multiply_interpreted(x, stored, kind, (rows, columns), backend)
    assert_close(kind, backend, x, blocks, y)


def test_split_columns_add_up() -> None:
    """Five trips in one block or in five, and the groups that are left over in the last."""
    kind, rows, columns = "Q4_1", 32, 1344
    blocks, stored = stored_case(kind, rows, columns, "triton")
    x = activations(8, columns)
    for splits in (1, 5):
        config = DecodeConfig(groups=8, splits=splits)
        options: Any = {"dtype": jnp.bfloat16, "assembly": False, "interpret": True}
        y = decode_matmul(x, stored, kernels.FORMATS[kind], config, **options)
        assert_close(kind, "triton", x, blocks, y.T)


@pytest.mark.parametrize("splits", [1, 2])
def test_whole_sums_are_rounded_before_they_are_written(splits: int) -> None:
    """The kernel writes two bytes a product, and four only where parts are still to be added up; the bits are equal."""
    kind, rows, columns = "Q4_1", 32, 512
    _, stored = stored_case(kind, rows, columns, "triton")
    x, form, config = activations(8, columns), kernels.FORMATS[kind], DecodeConfig(groups=8, splits=splits)
    multiply = functools.partial(decode_matmul, form=form, config=config, assembly=False, interpret=True)
    program = jax.make_jaxpr(functools.partial(multiply, dtype=jnp.bfloat16))(x, stored)
    (written,) = [equation for equation in program.eqns if equation.primitive.name == "pallas_call"]
    assert written.outvars[0].aval.dtype == (jnp.bfloat16 if splits == 1 else jnp.float32)
    wide = multiply(x, stored, dtype=jnp.float32)
    np.testing.assert_array_equal(multiply(x, stored, dtype=jnp.bfloat16), wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("splits", [1, 2])
def test_rows_that_fill_up_an_instruction_are_neither_read_nor_written(splits: int) -> None:
    """The CUDA kernel is given three rows and returns three products each, the bits of those among eight."""
    kind, rows, columns = "Q4_1", 32, 512
    _, stored = stored_case(kind, rows, columns, "triton")
    x, form, config = activations(8, columns), kernels.FORMATS[kind], DecodeConfig(groups=8, splits=splits)
    options: Any = {"dtype": jnp.bfloat16, "assembly": False, "interpret": True}
    multiply = functools.partial(decode_matmul, form=form, config=config, **options)
    program = jax.make_jaxpr(multiply)(x[:3], stored)
    (kernel,) = [equation for equation in program.eqns if equation.primitive.name == "pallas_call"]
    assert kernel.invars[0].aval.shape == (3, columns)
    assert kernel.outvars[0].aval.shape == (splits, rows, 3)
    np.testing.assert_array_equal(multiply(x[:3], stored), multiply(x, stored)[:, :3])


@pytest.mark.parametrize("kind", kernels.FORMATS)
def test_activations_are_summed_only_where_there_are_offsets(kind: str) -> None:
    """Of a format without offsets the program is the kernel alone."""
    form = kernels.FORMATS[kind]
    x, stored = MatmulCase(kind=kind, tokens=8, rows=32, columns=512).program("triton").operands
    config = DecodeConfig(groups=16)
    options: Any = {"dtype": jnp.bfloat16, "assembly": False, "interpret": True}
    multiply = functools.partial(decode_matmul, form=form, config=config, **options)
    assert ("reduce_sum" in str(jax.make_jaxpr(multiply)(x, stored))) == form.offset


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_activations_keep_sixteen_bits(backend: Backend) -> None:
    kind, rows, columns = "Q4_0", 32, 256
    blocks, stored = stored_case(kind, rows, columns, backend)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, columns)), jnp.float32)
    y = multiply_interpreted(x, stored, kind, (rows, columns), backend)
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
