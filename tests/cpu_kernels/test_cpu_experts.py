"""A mixture in one call against its experts one by one: equal bits, whatever is computed beside it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import blocks_of

import cpu_kernels
from cpu_kernels import ClampedSwiGLU, PackedMatrix

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

INSTRUCTION_SETS = cpu_kernels.available_instruction_sets() if cpu_kernels.is_available() else ()
HIDDEN, INNER, EXPERTS = 96, 64, 5


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def matrices(kind: str, rows: int, columns: int, *, bias: bool = False) -> PackedMatrix:
    """Those of all experts, each with blocks of its own."""
    blocks = blocks_of(kind, EXPERTS * rows, columns)
    tiles = jnp.stack([jnp.asarray(cpu_kernels.pack(kind, own, columns)) for own in np.split(blocks, EXPERTS)])
    return PackedMatrix(
        tiles=tiles, kind=kind, shape=(rows, columns), bias=normal(EXPERTS, rows, seed=rows) if bias else None
    )


def mixture(*, bias: bool = False) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix]:
    up = matrices("Q5_0", INNER, HIDDEN, bias=bias)
    return matrices("Q4_1", INNER, HIDDEN, bias=bias), up, matrices("Q8_0", HIDDEN, INNER, bias=bias)


def routed(tokens: int, most: int = 2) -> jax.Array:
    """Each token to `most` experts, drawn, none of them to the last."""
    rng = np.random.default_rng(tokens)
    weights = np.zeros((tokens, EXPERTS), np.float32)
    for row in weights:
        row[rng.permutation(EXPERTS - 1)[:most]] = rng.uniform(0.1, 1, size=most)
    return jnp.asarray(weights)


def of_expert(all_of_them: PackedMatrix, expert: int) -> PackedMatrix:
    bias = None if all_of_them.bias is None else all_of_them.bias[expert]
    return dataclasses.replace(all_of_them, tiles=all_of_them.tiles[expert], bias=bias)


def one_by_one(
    x: jax.Array, weights: jax.Array, gate: PackedMatrix, up: PackedMatrix, down: PackedMatrix
) -> np.ndarray:
    """Each expert over all tokens, added up in order with a rounding after each product and each sum."""
    total = np.zeros((x.shape[0], down.shape[0]), np.float32)
    for expert in range(EXPERTS):
        gated = cpu_kernels.project_gated(x, of_expert(gate, expert), of_expert(up, expert), "silu")
        (out,) = cpu_kernels.project(gated, [of_expert(down, expert)])
        weight = np.asarray(weights)[:, expert, None]
        total = np.where(weight == 0, total, total + weight * np.asarray(out))
    return total


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "most"), [(1, 2), (7, 1), (150, 4)])
def test_it_equals_its_experts_one_by_one(tokens: int, most: int, bias: bool) -> None:
    x, weights, experts = normal(tokens, HIDDEN), routed(tokens, most), mixture(bias=bias)
    out = cpu_kernels.mix_experts(x, weights, *experts, "silu")
    np.testing.assert_array_equal(out, one_by_one(x, weights, *experts))


def test_rows_do_not_depend_on_company_threads_or_instruction_set() -> None:
    x, weights, experts = normal(40, HIDDEN), routed(40), mixture(bias=True)
    mix = partial(cpu_kernels.mix_experts, activation=ClampedSwiGLU(alpha=1.7, limit=1.0))
    expected = np.asarray(mix(x, weights, *experts))
    for instruction_set in INSTRUCTION_SETS:
        for threads in (1, 2):
            some = mix(x[5:9], weights[5:9], *experts, instruction_set=instruction_set, threads=threads)
            np.testing.assert_array_equal(some, expected[5:9])
    batched = jax.vmap(lambda x, w: mix(x, w, *experts))(x.reshape(4, 10, -1), weights.reshape(4, 10, -1))
    np.testing.assert_array_equal(batched.reshape(40, -1), expected)


def test_tokens_without_experts_are_zero_and_nothing_is_a_result() -> None:
    experts = mixture(bias=True)
    assert not np.any(cpu_kernels.mix_experts(normal(3, HIDDEN), jnp.zeros((3, EXPERTS)), *experts, "silu"))
    assert cpu_kernels.mix_experts(normal(0, HIDDEN), jnp.zeros((0, EXPERTS)), *experts, "silu").shape == (0, HIDDEN)


def test_the_input_is_normalised_before_it_is_rounded() -> None:
    x, weights, experts = normal(7, HIDDEN), routed(7), mixture()
    norm = cpu_kernels.Rms(weight=1 + normal(HIDDEN, seed=5), eps=1e-5)
    total = np.zeros((7, HIDDEN), np.float32)
    for expert in range(EXPERTS):
        gate, up, down = (of_expert(one, expert) for one in experts)
        (out,) = cpu_kernels.project(cpu_kernels.project_gated(x, gate, up, "silu", norm=norm), [down])
        total += np.asarray(weights)[:, expert, None] * np.asarray(out)
    np.testing.assert_array_equal(cpu_kernels.mix_experts(x, weights, *experts, "silu", norm=norm), total)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (5, 2), (128, 8), (60, 60)])
def test_routing_is_a_softmax_over_the_largest(experts: int, chosen: int, normalise: bool) -> None:
    logits = 3 * normal(37, experts, seed=experts)
    weights = np.asarray(cpu_kernels.route(logits, chosen, normalise=normalise, scale=2.5))
    wide = np.asarray(logits, np.float64)
    places = np.argsort(-wide, axis=-1, kind="stable")[:, :chosen]
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    expected = np.zeros_like(wide)
    np.put_along_axis(expected, places, np.take_along_axis(powers, places, -1), -1)
    expected *= 2.5 / (expected if normalise else powers).sum(-1, keepdims=True)
    # An exponential is within 2 units of its last place, of an argument that is rounded to |x| / 2 units; a sum of at
    # most 8 terms a lane and 4 levels, a quotient and a product are rounded once each.
    size = np.abs(wide - wide.max(-1, keepdims=True)).max(-1, keepdims=True)
    np.testing.assert_array_less(np.abs(weights - expected), (10 + size) * 2.0**-23 * expected + 1e-37)
    for instruction_set in INSTRUCTION_SETS:
        options = {"normalise": normalise, "scale": 2.5, "instruction_set": instruction_set}
        np.testing.assert_array_equal(cpu_kernels.route(logits, chosen, **options), weights)
        np.testing.assert_array_equal(cpu_kernels.route(logits[3:4], chosen, **options), weights[3:4])


def test_equal_logits_go_to_the_first_and_nan_spoils_its_own_row() -> None:
    logits = jnp.zeros((3, 6)).at[1, 4].set(jnp.nan).at[2].set(jnp.array([0, -jnp.inf, 2, -jnp.inf, 2, 1]))
    weights = np.asarray(jax.vmap(lambda one: cpu_kernels.route(one, 2))(logits))
    np.testing.assert_array_equal(weights[[0, 2]], [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0, 0.5, 0]])
    assert np.isnan(weights[1]).all()
    with pytest.raises(ValueError, match="1 to 6 experts can be chosen of 6 <= 4096, got 7"):
        cpu_kernels.route(logits, 7)


def test_the_profile_counts_its_calls() -> None:
    with cpu_kernels.profile() as times:
        jax.block_until_ready(cpu_kernels.mix_experts(normal(1, HIDDEN), routed(1), *mixture(), "silu"))
    assert times["mix_experts"].calls == 1 and times["project"].calls == 0


def test_matrices_that_do_not_fit_are_refused() -> None:
    gate, up, down = mixture()
    with pytest.raises(ValueError, match=r"gate and up must be \[inner, hidden\]"):
        cpu_kernels.mix_experts(normal(1, HIDDEN), routed(1), gate, down, down, "silu")
    with pytest.raises(ValueError, match="a column for each of at most 4096 experts, got 4"):
        cpu_kernels.mix_experts(normal(1, HIDDEN), routed(1)[:, :4], gate, up, down, "silu")
