"""The native argmax against numpy's: wherever the largest stands, whatever the instruction set, batched or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels
from cpu_kernels import InstructionSet

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

SETS = cpu_kernels.available_instruction_sets() if cpu_kernels.is_available() else ()
PLACES = (0, 1, 15, 1023, 1024, 16384, 40_000)


def rows_with_ties() -> np.ndarray:
    """Each row's largest stands at two of the places, the second time anywhere behind; the last has two NaN."""
    x = np.random.default_rng(0).normal(size=(len(PLACES), 40_001)).astype(np.float32)
    for row, place in zip(x, PLACES, strict=True):
        row[[place, -1]] = 9.0
    x[-1, [17_000, 30_000]] = np.nan
    return x


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("threads", [1, 2, None])
def test_it_is_numpys(instruction_set: InstructionSet, threads: int | None) -> None:
    x = rows_with_ties()
    found = cpu_kernels.argmax(jnp.asarray(x), instruction_set=instruction_set, threads=threads)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, x.argmax(-1))
    np.testing.assert_array_equal(found, [*PLACES[:-1], 17_000])


def test_any_axes_in_front() -> None:
    x = jnp.asarray(rows_with_ties()[:6].reshape(2, 3, -1))
    expected = jnp.argmax(x, -1)
    np.testing.assert_array_equal(cpu_kernels.argmax(x), expected)
    np.testing.assert_array_equal(jax.vmap(cpu_kernels.argmax)(x), expected)
    np.testing.assert_array_equal(jax.vmap(cpu_kernels.argmax, in_axes=1, out_axes=1)(x), expected)
    assert cpu_kernels.argmax(x[0, 0]).shape == ()
    assert cpu_kernels.argmax(x[:, :0]).shape == (2, 0)


def test_a_constant_as_far_as_derivatives_go() -> None:
    def largest(x: jax.Array) -> jax.Array:
        return x[cpu_kernels.argmax(x)]

    np.testing.assert_array_equal(jax.grad(largest)(jnp.asarray([1.0, 3.0, 2.0])), [0, 1, 0])


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one column to choose from, got shape \(3, 0\)"):
        cpu_kernels.argmax(jnp.zeros((3, 0)))
