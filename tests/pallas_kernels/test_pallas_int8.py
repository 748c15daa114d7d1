"""Products of activations in 8 bits with quantised weights, interpreted, against exact ones of what was rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import ptx
import pytest
from matmul_inputs import BFLOAT16, FLOAT32, activations, scales_and_offsets, stored_case

import pallas_kernels.quantized_matmul as kernels
from pallas_kernels.quantized_matmul.cases import SMALL_INT8_CASES, MatmulCase
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.rounding import round_rows
from pallas_kernels.quantized_matmul.triton_bytes import value_assembly, value_tile

GROUP = 32
INT8_KINDS = [kind for kind, form in kernels.FORMATS.items() if form.takes_int8]
# A group's scale is off by an ulp where a division is a product with the reciprocal, a quotient before it is rounded by
# three: less than a thousandth of half a step.
HALF_STEP = 0.5005


# Two planes and a zero, offsets, and a table.
FAST = {"Q5_0", "Q4_K", "MXFP4"}


def multiply(x: jax.Array, stored: Stored, kind: str, shape: tuple[int, int]) -> jax.Array:
    return kernels.quantized_matmul(x, stored, kind, shape, backend="triton", activations="int8", interpret=True)


def rounded(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel multiplies in place of x, and the scale of each of its values."""
    rows = round_rows(x, GROUP)
    scales = np.repeat(np.asarray(rows.scales, np.float64).T, GROUP, axis=1)
    return scales * np.asarray(rows.codes, np.float64), scales


def assert_product(kind: str, x: jax.Array, blocks: np.ndarray, stored: Stored, y: jax.Array) -> None:
    """Within the rounding of float32 sums of the product with the rounded x, and of x's rounding of that with x."""
    shape = (len(blocks), x.shape[1])
    weights = np.asarray(kernels.unpack(stored, kind, shape, "triton"), np.float64)
    offsets = np.abs(scales_and_offsets(kind, blocks)[1])
    own, scales = rounded(x)
    exact = own @ weights.T
    # A group adds the products of its scales with an exact sum, and of its offset: each term is rounded three times at
    # most before it enters a sum of so many terms. Offsets, and weights by their unpacking, by as much again.
    terms = np.abs(own) @ (np.abs(weights) + 2.01 * offsets).T
    bound = (2 * x.shape[1] // GROUP + 8) * FLOAT32 * terms
    bound += (BFLOAT16 if x.dtype == jnp.bfloat16 else FLOAT32) * (np.abs(exact) + bound)
    found = np.asarray(y, np.float64)
    np.testing.assert_array_less(np.abs(found - exact), bound + 1e-30)
    whole = np.asarray(x, np.float64) @ weights.T
    np.testing.assert_array_less(np.abs(found - whole), bound + HALF_STEP * scales @ np.abs(weights).T + 1e-30)


@pytest.mark.parametrize(
    "case",
    [case if case.kind in FAST else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_INT8_CASES],
    ids=lambda case: case.name,
)
def test_products_lie_within_the_derived_bound(case: MatmulCase) -> None:
    shape = (case.rows, case.columns)
    blocks, stored = stored_case(case.kind, *shape, "triton")
    x = activations(case.tokens, case.columns)
    y = multiply(x, stored, case.kind, shape)
    assert (y.shape, y.dtype) == ((case.tokens, case.rows), jnp.bfloat16)
    assert_product(case.kind, x, blocks, stored, y)


def test_every_format_with_groups_of_32_has_a_case() -> None:
    assert [case.kind for case in SMALL_INT8_CASES] == INT8_KINDS
    assert set(kernels.FORMATS) - set(INT8_KINDS) == {"Q2_K", "Q3_K", "Q6_K", "NVFP4"}


@pytest.mark.parametrize("columns", [pytest.param(32, marks=pytest.mark.slow), 288])
def test_any_number_of_groups(columns: int) -> None:
    """Fewer than a trip, and a rest behind the last."""
    blocks, stored = stored_case("Q5_1", 32, columns, "triton")
    x = activations(20, columns)
    assert_product("Q5_1", x, blocks, stored, multiply(x, stored, "Q5_1", (32, columns)))


def test_sums_of_products_are_exact() -> None:
    """Whole numbers up to 127 times whole numbers, all scales one: float32 holds every partial sum."""
    rng, (rows, columns) = np.random.default_rng(0), (32, 256)
    codes = rng.integers(-127, 128, size=(rows, columns // 32, 32), dtype=np.int8)
    ones = np.broadcast_to(np.array([1], "<f2").view(np.uint8), (rows, columns // 32, 2))
    blocks = np.concatenate([ones, codes.view(np.uint8)], axis=-1).reshape(rows, -1)
    stored = tuple(jnp.asarray(part) for part in kernels.pack("Q8_0", blocks, columns, "triton"))
    x = rng.integers(-127, 128, size=(17, columns)).astype(np.float32)
    x[:, ::32] = 127
    y = multiply(jnp.asarray(x), stored, "Q8_0", (rows, columns))
    np.testing.assert_array_equal(y, x @ codes.reshape(rows, columns).T.astype(np.float32))


def test_extreme_rows() -> None:
    """Zeros, numbers too small to have a scale, huge ones, one large value among small ones; NaN stays in its row."""
    kind, (rows, columns) = "Q4_1", (32, 256)
    blocks, stored = stored_case(kind, rows, columns, "triton")
    x = np.array(activations(32, columns), np.float32)
    x[0], x[1], x[2], x[3] = 0, 1e-40, np.sign(x[2]) * 1e-37, x[3] * 1e30
    x[4, ::32], x[5, 7], x[6, 9], x[7, 11] = 1e6, np.nan, np.inf, -np.inf
    y = np.asarray(multiply(jnp.asarray(x), stored, kind, (rows, columns)))
    assert np.isnan(y[5:8]).all()
    assert not y[:3].any()
    finite = np.r_[3:5, 8:32]
    own = jnp.asarray(x[finite])
    assert_product(kind, own, blocks, stored, jnp.asarray(y[finite]))


def test_activations_of_any_dtype_are_rounded_once() -> None:
    kind, shape = "Q4_0", (32, 256)
    blocks, stored = stored_case(kind, *shape, "triton")
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 9, 256)), jnp.float32)
    y = multiply(x, stored, kind, shape)
    assert (y.shape, y.dtype) == ((2, 9, 32), jnp.float32)
    assert_product(kind, x.reshape(18, -1), blocks, stored, y.reshape(18, -1))


@pytest.mark.parametrize(("kind", "tokens"), [("Q6_K", 17), pytest.param("Q4_K", 16, marks=pytest.mark.slow)])
def test_what_gains_nothing_is_multiplied_as_without_rounding(kind: str, tokens: int) -> None:
    """Formats with groups of 16, and few rows."""
    _, stored = stored_case(kind, 32, 256, "triton")
    x = activations(tokens, 256)
    plain = kernels.quantized_matmul(x, stored, kind, (32, 256), backend="triton", interpret=True)
    np.testing.assert_array_equal(multiply(x, stored, kind, (32, 256)), plain)


def test_derivatives_go_straight_through_the_rounding() -> None:
    kind, (rows, columns) = "Q4_1", (32, 64)
    blocks, stored = stored_case(kind, rows, columns, "triton")
    weights = np.asarray(kernels.unpack(stored, kind, (rows, columns), "triton"), np.float64)
    x, seed = (activations(17, n).astype(jnp.float32) for n in (columns, rows))
    y, pull = jax.vjp(lambda x: multiply(x, stored, kind, (rows, columns)), x)
    assert_product(kind, x, blocks, stored, y)
    bound = (rows + 2) * FLOAT32 * (np.abs(np.asarray(seed, np.float64)) @ np.abs(weights))
    exact = np.asarray(seed, np.float64) @ weights
    np.testing.assert_array_less(np.abs(np.asarray(pull(seed)[0], np.float64) - exact), bound + 1e-30)
    _, tangent = jax.jvp(lambda x: multiply(x, stored, kind, (rows, columns)), (x,), (x,))
    exact = np.asarray(x, np.float64) @ weights.T
    bound = (columns + 2) * FLOAT32 * (np.abs(np.asarray(x, np.float64)) @ np.abs(weights).T)
    np.testing.assert_array_less(np.abs(np.asarray(tangent, np.float64) - exact), bound + 1e-30)


@pytest.mark.parametrize("kind", [kind for kind in INT8_KINDS if kind != "Q8_0"])
def test_bytes_equal_the_jnp_form(kind: str) -> None:
    """The inline assembly in an emulator: every byte in every plane, four a register, planes paired at random."""
    form, rng = kernels.FORMATS[kind], np.random.default_rng(0)
    planes = [np.concatenate([rng.permutation(256) for _ in range(16)]).astype(np.uint8) for _ in form.planes]
    for group in range(form.fields):
        words = {f"${1 + i}": plane.view("<u4") for i, plane in enumerate(planes)}
        after = ptx.run(value_assembly(form, group), words)["$0"].view(np.int8)
        expected = value_tile([jnp.asarray(plane) for plane in planes], form, group, assembly=False)
        np.testing.assert_array_equal(after, expected)


def test_errors_name_the_rule() -> None:
    _, stored = stored_case("Q8_0", 8, 64, "tpu")
    with pytest.raises(ValueError, match="activations must be bfloat16, or int8 on CUDA, got 'int8' for 'tpu'"):
        kernels.quantized_matmul(jnp.zeros((1, 64)), stored, "Q8_0", (8, 64), backend="tpu", activations="int8")
    with pytest.raises(ValueError, match="activations must be bfloat16, or int8 on CUDA, got 'int8' for 'tpu'"):
        SMALL_INT8_CASES[0].program("tpu")
