"""Two-stage argmax and top_k against a stable sort."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels
from realm_jax.sampling import chunks


def rows(kind: str, vocab: int) -> np.ndarray:
    rng = np.random.default_rng(vocab)
    x = rng.normal(size=(3, vocab)).astype(np.float32)
    return {
        "distinct": lambda: x,
        "ascending": lambda: np.sort(x, -1),
        "constant": lambda: np.zeros_like(x),
        "ties": lambda: np.round(x),
        "two zeros": lambda: np.where(x > 0, np.float32(0), np.float32(-0.0)),
        "infinities": lambda: np.where(x > 1, np.inf, np.where(x < 0, -np.inf, x)).astype(np.float32),
        "nothing": lambda: np.full_like(x, -np.inf),
    }[kind]()


KINDS = ["distinct", "ascending", "constant", "ties", "two zeros", "infinities", "nothing"]


@functools.partial(jax.jit, static_argnums=1)
def both(x: np.ndarray, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    padded = chunks.pad(x, -np.inf)
    return chunks.argmax(padded), *chunks.top_k(padded, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "k"), [(1, 1), (63, 5), (64, 64), (1000, 4), (5000, 4), (70_001, 40)])
def test_the_result_is_that_of_a_stable_sort(kind: str, vocab: int, k: int) -> None:
    x = rows(kind, vocab)
    best, values, ids = both(x, k)
    order = np.argsort(-x, -1, kind="stable")[:, :k]
    np.testing.assert_array_equal(best, order[:, 0])
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [1, 63, 64, 1000, 70_001])
def test_native_kernels_find_the_same(kind: str, vocab: int) -> None:
    x = rows(kind, vocab)
    native = jax.jit(lambda x: chunks.argmax(x, implementation="cpu"))(x)
    np.testing.assert_array_equal(native, chunks.argmax(jnp.asarray(x)))


def test_padding_is_left_out_where_nothing_is_missing() -> None:
    x = jnp.zeros((2, 128))
    assert chunks.pad(x, -np.inf) is x
    assert chunks.pad(x[:, :100], -np.inf).shape == (2, 128)
