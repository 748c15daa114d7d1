"""Fused projections against their parts: equal where no rounding is added, within derived bounds elsewhere."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import blocks_of

import cpu_kernels
from cpu_kernels import GATES, PackedMatrix, Rms

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

INSTRUCTION_SETS = cpu_kernels.available_instruction_sets() if cpu_kernels.is_available() else ()
COLUMNS = 96
EPS = 1e-5
ULP = 2.0**-23


def matrix(kind: str, rows: int, *, bias: bool = False) -> PackedMatrix:
    tiles = jnp.asarray(cpu_kernels.pack(kind, blocks_of(kind, rows, COLUMNS), COLUMNS))
    return PackedMatrix(tiles=tiles, kind=kind, shape=(rows, COLUMNS), bias=normal(rows, seed=rows) if bias else None)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def norm(size: int = COLUMNS) -> Rms:
    return Rms(weight=1 + normal(size, seed=5), eps=EPS)


def product(x: jax.Array, m: PackedMatrix) -> np.ndarray:
    """The product alone, with the bias, in float32."""
    y = np.asarray(cpu_kernels.quantized_matmul(x, m.tiles, m.kind, m.shape))
    return y if m.bias is None else y + np.asarray(m.bias)


def mixed() -> list[PackedMatrix]:
    return [matrix("Q4_1", 40), matrix("Q8_0", 17, bias=True), matrix("Q5_0", 16), matrix("F16", 24)]


def every_form(x: jax.Array, **options: object) -> list[jax.Array]:
    """One result of each kind of projection."""
    up, down = matrix("Q4_1", 40, bias=True), matrix("Q5_0", COLUMNS)
    gated = partial(cpu_kernels.project_gated, x, matrix("Q4_1", 40), up, norm=norm(), **options)
    add = partial(cpu_kernels.project_add, x, down, x, scale=0.5, **options)
    parts = cpu_kernels.project(x, mixed(), norm=norm(), **options)
    halves = cpu_kernels.project(x, mixed(), norm=norm(), activation_group=16, **options)
    return [*parts, *halves, *(gated(name) for name in GATES), add(), add(post_norm=norm())]


def test_products_side_by_side_equal_products_alone() -> None:
    x = normal(19, COLUMNS)
    for m, y in zip(mixed(), cpu_kernels.project(x, mixed()), strict=True):
        np.testing.assert_array_equal(y, product(x, m))


def test_a_residual_is_added_to_the_product() -> None:
    x, m, residual = normal(5, COLUMNS), matrix("Q4_1", 40, bias=True), normal(5, 40, seed=1)
    scale = np.float32(0.3)
    np.testing.assert_array_equal(
        cpu_kernels.project_add(x, m, residual, scale=0.3), np.asarray(residual) + scale * product(x, m)
    )


def test_the_product_is_normalised_before_it_is_added() -> None:
    x, m, residual = normal(5, COLUMNS), matrix("Q4_1", 40), normal(5, 40, seed=1)
    branch = product(x, m).astype(np.float64)
    weight = np.asarray(norm(40).weight, np.float64)
    branch *= weight / np.sqrt(np.mean(branch**2, axis=-1, keepdims=True) + EPS)
    y = cpu_kernels.project_add(x, m, residual, scale=0.5, post_norm=norm(40))
    # A sum of 40 squares in three levels, a root, a quotient, three products and a sum, each rounded once.
    bound = 12 * ULP * (np.abs(branch) + np.abs(residual))
    np.testing.assert_array_less(np.abs(y - (np.asarray(residual, np.float64) + 0.5 * branch)), bound)


@pytest.mark.parametrize("activation", GATES)
def test_the_gate_is_the_activation_of_its_product(activation: cpu_kernels.Gate) -> None:
    x = 4 * normal(7, COLUMNS)
    gate, up = matrix("Q4_1", 40), matrix("Q5_0", 40, bias=True)
    z, u = (product(x, m).astype(np.float64) for m in (gate, up))
    slope = 1.0 if activation == "silu" else np.sqrt(8 / np.pi) * (1 + 0.044715 * z**2)
    expected = z / (1 + np.exp(-slope * z)) * u
    y = cpu_kernels.project_gated(x, gate, up, activation)
    # exp is within 2 ulp of an argument that is rounded to slope |z| ulp; below e^-86 it stops falling.
    bound = (8 + 4 * np.abs(slope * z)) * ULP * np.abs(expected) + 2 * np.exp(-86) * np.abs(z * u)
    np.testing.assert_array_less(np.abs(y - expected), bound)


@pytest.mark.parametrize("group", [16, 32])
def test_the_input_is_normalised_before_it_is_rounded(group: Literal[16, 32]) -> None:
    x, m = 3 * normal(7, COLUMNS), matrix("Q8_0", 40)
    (y,) = cpu_kernels.project(x, [m], norm=norm(), activation_group=group)
    wide = np.asarray(x, np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + EPS) * np.asarray(norm().weight)
    weights = np.asarray(cpu_kernels.unpack(m.tiles, m.kind, m.shape), np.float64)
    groups = normed.reshape(7, -1, group)
    # Half a step of each group of 8-bit codes, plus float32 rounding of 96 terms.
    half_steps = np.repeat(np.abs(groups).max(-1) / 254, group, axis=-1)
    bound = half_steps @ np.abs(weights).T + 100 * ULP * np.abs(normed) @ np.abs(weights).T
    np.testing.assert_array_less(np.abs(y - normed @ weights.T), bound)


def test_a_large_value_coarsens_only_those_it_shares_a_scale_with() -> None:
    x = jnp.zeros((1, COLUMNS), jnp.float32).at[0, 3].set(1000.0).at[0, 20].set(1.0)  # a step of 32 columns is 7.9
    for m in (m for m in mixed() if m.kind != "F16"):
        exact = np.asarray(x) @ np.asarray(cpu_kernels.unpack(m.tiles, m.kind, m.shape)).T
        exact += 0 if m.bias is None else np.asarray(m.bias)
        coarse, fine = (
            np.asarray(cpu_kernels.project(x, [m], activation_group=group)[0]) - exact for group in (32, 16)
        )
        # 127 codes of either scale are exact: what is left is rounding of float32.
        assert np.abs(fine).max() < 8 * ULP * np.abs(exact).max() < np.abs(coarse).max() / 100


def test_rows_do_not_depend_on_company_threads_or_instruction_set() -> None:
    x = normal(150, COLUMNS)
    run = jax.jit(every_form, static_argnames=("instruction_set", "threads"))
    whole = run(x)
    for count in (1, 2, 3, 7, 16, 33):
        for alone, together in zip(run(x[:count]), whole, strict=True):
            np.testing.assert_array_equal(alone, together[:count])
    for instruction_set in INSTRUCTION_SETS:
        for threads in (1, 2, 3):
            for y, together in zip(run(x, instruction_set=instruction_set, threads=threads), whole, strict=True):
                np.testing.assert_array_equal(y, together)


def test_more_rows_than_a_team_counts_chunks() -> None:
    rows = 32 * 2**14 + 5  # of plain C++, 32 a range
    x = jnp.tile(normal(7, 32), (rows // 7 + 1, 1))[:rows]
    tiles = jnp.asarray(cpu_kernels.pack("Q8_0", blocks_of("Q8_0", 1, 32), 32))
    matrices = [PackedMatrix(tiles=tiles, kind="Q8_0", shape=(1, 32))] * 4
    for instruction_set in (cpu_kernels.InstructionSet.PORTABLE, cpu_kernels.InstructionSet.BEST):
        results = cpu_kernels.project(x, matrices, instruction_set=instruction_set)
        alone = cpu_kernels.project(x[:7], matrices, instruction_set=instruction_set)
        for y, few in zip(results, alone, strict=True):
            np.testing.assert_array_equal(y, np.tile(few, (rows // 7 + 1, 1))[:rows])


def test_vmap_over_activations_and_over_matrices() -> None:
    x = normal(3, 5, COLUMNS)
    for y, together in zip(jax.vmap(every_form)(x), every_form(x.reshape(-1, COLUMNS)), strict=True):
        np.testing.assert_array_equal(y.reshape(together.shape), together)
    one, other = matrix("Q8_0", 17), matrix("Q8_0", 17)
    stacked = jnp.stack([one.tiles, other.tiles])

    def times(tiles: jax.Array) -> jax.Array:
        return cpu_kernels.project(x[0], [PackedMatrix(tiles=tiles, kind="Q8_0", shape=one.shape)])[0]

    np.testing.assert_array_equal(jax.vmap(times)(stacked), jnp.stack([times(one.tiles), times(other.tiles)]))


def test_derivatives_are_those_of_the_same_computation_through_xla() -> None:
    gate, up, down = matrix("Q4_1", 40, bias=True), matrix("Q5_0", 40), matrix("Q8_0", COLUMNS)
    x, tangent = normal(3, COLUMNS), normal(3, COLUMNS, seed=9)

    def native(x: jax.Array, weight: jax.Array) -> jax.Array:
        rms = Rms(weight=weight, eps=EPS)
        gated = cpu_kernels.project_gated(x, gate, up, "silu", norm=rms).sum()
        return gated + (cpu_kernels.project_add(x, down, x, scale=0.5, post_norm=rms) ** 2).sum()

    def dense(x: jax.Array, weight: jax.Array) -> jax.Array:
        rms = Rms(weight=weight, eps=EPS)
        times = lambda x, m: x @ cpu_kernels.unpack(m.tiles, m.kind, m.shape).T  # noqa: E731
        gated = jax.nn.silu(times(rms(x), gate) + gate.bias[None]) * times(rms(x), up)
        return gated.sum() + ((x + 0.5 * rms(times(x, down))) ** 2).sum()

    weight = norm().weight
    got, expected = jax.grad(native, (0, 1))(x, weight), jax.grad(dense, (0, 1))(x, weight)
    for a, b in zip(got, expected, strict=True):
        # The square's derivative is taken at the native value, whose activations are rounded to 8 bits: 1/254 a group.
        np.testing.assert_allclose(a, b, rtol=0, atol=2 / 254 * float(jnp.abs(b).max()))
    _, along = jax.jvp(lambda x: native(x, weight), (x,), (tangent,))
    np.testing.assert_allclose(along, jnp.vdot(got[0], tangent), rtol=1e-4)


def test_the_null_set_takes_everything_and_returns_zeros() -> None:
    for y in every_form(normal(3, COLUMNS), instruction_set=cpu_kernels.InstructionSet.NULL):
        assert not np.asarray(y).any()


def test_nothing_to_do() -> None:
    assert [y.shape[0] for y in every_form(jnp.zeros((0, COLUMNS)))] == [0] * 12


def test_errors_name_the_rule() -> None:
    m = matrix("Q8_0", 17)
    with pytest.raises(ValueError, match="x must end in the columns of all matrices"):
        cpu_kernels.project(jnp.zeros((1, 32)), [m])
    with pytest.raises(ValueError, match="gate and up must have one shape"):
        cpu_kernels.project_gated(jnp.zeros((1, COLUMNS)), m, matrix("Q8_0", 16), "silu")
    with pytest.raises(ValueError, match="the residual must have shape"):
        cpu_kernels.project_add(jnp.zeros((1, COLUMNS)), m, jnp.zeros((1, 16)))
    wrong = PackedMatrix(tiles=m.tiles, kind="Q4_0", shape=m.shape)
    with pytest.raises(jax.errors.JaxRuntimeError, match="not those of matrices of these shapes"):
        jax.block_until_ready(cpu_kernels.project(jnp.zeros((1, COLUMNS)), [wrong]))
