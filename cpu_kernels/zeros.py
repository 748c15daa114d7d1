"""zeros: arrays of zeros that take memory only where they are written."""

import functools
from collections.abc import Sequence

import jax

from cpu_kernels.native import target

__all__ = ["zeros"]


def zeros(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """`[jnp.zeros(s.shape, s.dtype) for s in shapes]` on the CPU, in buffers of XLA's own that can be donated.

    On Linux their pages are the system's zeros until something is written to them: a gigabyte takes no time and no
    memory.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    return list(_zeros(tuple(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes)))


@functools.partial(jax.jit, static_argnums=0)
def _zeros(shapes: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[jax.Array, ...]:
    return tuple(jax.ffi.ffi_call(target("realm_zeros"), shapes)())
