"""quantized_matmul: activations times the transpose of a packed weight, in the native kernels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.native import target
from cpu_kernels.tile_kinds import FORMATS
from cpu_kernels.tiles import reference_matmul

__all__ = ["quantized_matmul"]


def quantized_matmul(
    x: Float[Array, "*batch columns"],
    packed: UInt8[Array, "tiles bytes"],
    kind: str,
    shape: tuple[int, int],
    *,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float[Array, "*batch rows"]:
    """`x @ unpack(packed, kind, shape).T`, of quantised kinds with x in 8 bits; the result has `x.dtype`.

    Each group of 32 activations is rounded to `d q`, with `d = max |x| / 127` and q a whole number. An output therefore
    differs from the exact product by at most `sum over groups of d/2 sum |w|`, and by float32 rounding. A group below
    2^-120 counts as zero; a row with a value that is not finite becomes NaN. Sums of products are exact within a group,
    and groups are added in ascending order: a row's result has the same bits whatever other rows there are, on any
    number of threads and any instruction set.

    F32, F16 and BF16 weights are multiplied by x as it is, in two float32 sums of even and of odd columns, ascending,
    that are added in the end.

    Derivatives with respect to x, in both modes, are those of the product with the decoded weight.

    Raises:
        ValueError: x does not end in the weight's columns.
        RuntimeError: the native library cannot be used.
    """
    rows, columns = shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must end in the weight's {columns} columns, got shape {x.shape}")
    y = _product(kind, (rows, columns), int(instruction_set), threads or 0, x.astype(jnp.float32), packed)
    return y.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _product(
    kind: str, shape: tuple[int, int], instruction_set: int, threads: int, x: jax.Array, packed: jax.Array
) -> jax.Array:
    result = jax.ShapeDtypeStruct((*x.shape[:-1], shape[0]), jnp.float32)
    call = jax.ffi.ffi_call(target("realm_quantized_matmul"), result, vmap_method="expand_dims")
    return call(x, packed, kind=FORMATS[kind].index, rows=shape[0], instruction_set=instruction_set, threads=threads)


@_product.defjvp
def _product_jvp(
    kind: str,
    shape: tuple[int, int],
    instruction_set: int,
    threads: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, packed = primals
    y = _product(kind, shape, instruction_set, threads, x, packed)
    return y, reference_matmul(tangents[0], packed, kind, shape)
