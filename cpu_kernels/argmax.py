"""argmax: the place of the largest value of each row, in a native kernel that reads the rows once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.native import target

__all__ = ["argmax"]


def argmax(
    x: Float32[Array, "*rows columns"],
    *,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Int32[Array, "*rows"]:
    """`jnp.argmax(x, -1)`: the first place among equals, -0 and +0 being equal, and the first NaN where there is one.

    Under vmap, axes in front are more rows. Nothing flows backward through it.

    Raises:
        ValueError: there are no columns.
        RuntimeError: the native library cannot be used.
    """
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"x must have at least one column to choose from, got shape {x.shape}")
    result = jax.ShapeDtypeStruct(x.shape[:-1], jnp.int32)
    call = jax.ffi.ffi_call(target("realm_argmax"), result, vmap_method="broadcast_all")
    return call(jax.lax.stop_gradient(x), instruction_set=int(instruction_set), threads=threads or 0)
