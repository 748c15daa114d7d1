"""Native zeros are zeros in buffers of their own, take no memory before they are written, and can be donated."""

import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_they_are_zeros_where_memory_was_used_before(dtype: str) -> None:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in [(), (0, 3), (7,), (3, 50_000), (1000, 4099)]]
    for _ in range(3):
        found = cpu_kernels.zeros(shapes)
        assert [(a.shape, a.dtype) for a in found] == [(s.shape, s.dtype) for s in shapes]
        assert not any(np.asarray(a).any() for a in found)
        used = [jnp.ones(s.shape, s.dtype).block_until_ready() for s in shapes]  # freed before the next round
        del found, used


def test_a_donated_one_is_written_in_place() -> None:
    (array,) = cpu_kernels.zeros([jax.ShapeDtypeStruct((1 << 20,), jnp.float32)])
    before = array.unsafe_buffer_pointer()
    write = jax.jit(lambda a: a.at[5].set(1.0), donate_argnums=0)
    after = write(array)
    assert after.unsafe_buffer_pointer() == before
    assert float(after.sum()) == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back as zeros")
def test_they_take_no_memory() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (peak << 10) + (1 << 28)  # above anything that the process held before
    (array,) = cpu_kernels.zeros([jax.ShapeDtypeStruct((size,), jnp.uint8)])
    array.block_until_ready()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 16  # KiB: a quarter of what exceeds
