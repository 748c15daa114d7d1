"""Exact masses, the inverse CDF of a sum tree, and bisection in descending order, against integers and sorts."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.sampling import chunks, descending, mass
from realm_jax.sampling.wide import Wide


def integer_mass(weights: np.ndarray) -> list[int]:
    """Return floor(weight * 2**36), one weight at a time."""
    return [int(Fraction(float(weight)) * 2**36) for weight in weights]


def targets(values: np.ndarray) -> Wide:
    values = np.asarray(values, np.uint64)
    return Wide(jnp.asarray((values >> 32).astype(np.uint32)), jnp.asarray(values.astype(np.uint32)))


@pytest.mark.parametrize("vocab", [64, 192, 5000, 70_001])
def test_the_total_is_exact(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    weights = (rng.random(vocab) ** 20).astype(np.float32)
    weights[:100] = 1.0
    padded = chunks.pad(jnp.asarray(weights), 0.0)
    got = jax.jit(lambda w: (mass.total(w), mass.sum_tree(w).total))(padded)
    expected = sum(integer_mass(weights))
    assert all((int(total.high) << 32) + int(total.low) == expected for total in got)
    # float32 keeps 24 of the mass's bits.
    assert float(mass.to_float(got[0])) == pytest.approx(expected / 2**36, rel=2**-23)


def test_the_total_of_equal_weights_does_not_overflow() -> None:
    ones = jnp.ones((2, 64 * 4096))
    total = jax.jit(mass.total)(ones)
    assert (int(total.high[1]) << 32) + int(total.low[1]) == 64 * 4096 * 2**36


@pytest.mark.parametrize("vocab", [64, 640, 64 * 70])
def test_every_token_gets_its_exact_share(vocab: int) -> None:
    counts = np.random.default_rng(vocab).integers(0, 4, vocab)
    counts[-3:] = 0, 5, 0
    tree = mass.sum_tree(jnp.asarray(counts * mass.UNIT_WEIGHT, jnp.float32))
    at = targets(np.arange(counts.sum()))
    tokens = jax.jit(jax.vmap(lambda target: mass.locate(tree, target)))(at)
    np.testing.assert_array_equal(np.bincount(tokens, minlength=vocab), counts)


def test_rows_of_a_tree_are_independent() -> None:
    weights = jnp.asarray(np.random.default_rng(0).random((3, 640)), jnp.float32)
    at = targets(np.array([5, 2**40, 2**42]))
    locate = jax.jit(lambda weights, at: mass.locate(mass.sum_tree(weights), at))
    together = locate(weights, at)
    alone = [locate(weights[row], Wide(at.high[row], at.low[row])) for row in range(3)]
    assert together.tolist() == alone


@functools.cache
def found(vocab: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values with ties, integer weights, and the token found at every mass."""
    rng = np.random.default_rng(levels)
    values = rng.integers(-levels // 2, levels // 2 + 1, vocab).astype(np.float32) / 3
    values[::7] *= -0.0
    counts = rng.integers(0, 4, vocab)
    keys = descending.sort_key(jnp.asarray(values))
    weights = jnp.asarray(counts * mass.UNIT_WEIGHT, jnp.float32)
    find = jax.jit(jax.vmap(lambda target: descending.find(keys, weights, target).token))
    return values, counts, np.asarray(find(targets(np.arange(counts.sum()))))


@pytest.mark.parametrize("levels", [1, 5, 10_000])
def test_bisection_finds_what_a_stable_sort_finds(levels: int) -> None:
    values, counts, tokens = found(192, levels)
    order = np.argsort(-values, kind="stable")
    np.testing.assert_array_equal(tokens, np.repeat(order, counts[order]))


def test_a_cut_splits_ties_by_token() -> None:
    keys = descending.sort_key(jnp.asarray([1.0, 2.0, 1.0, 1.0, 0.0]))
    cut = descending.Cut(keys[2], jnp.int32(2))
    assert list(descending.before(cut, keys)) == [True, True, True, False, False]


def test_sort_keys_order_floats() -> None:
    tiny = np.finfo(np.float32).tiny
    values = np.array([-np.inf, -1e30, -1, -tiny, -0.0, 0.0, tiny, 1, 1e30, np.inf], np.float32)
    keys = np.asarray(descending.sort_key(jnp.asarray(values))).astype(np.int64)
    np.testing.assert_array_equal(np.sign(np.diff(keys)), np.sign(np.diff(np.arange(10)) - (values[1:] == values[:-1])))
