"""moe_grouped_matmul: rows of activations, grouped by expert, times their experts' matrices, by a backend's kernels."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.case import Backend
from pallas_kernels.halves import halves
from pallas_kernels.quantized_matmul.config import CUDA_DECODE, TPU_DECODE, MatmulShape, config_for, kernel_for
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import Stored, groups_of
from pallas_kernels.quantized_matmul.product import reference_matmul
from pallas_kernels.routing import Blocks

# What a 32-bit offset of a CUDA kernel reaches.
_MOST_BYTES = 2**31


def moe_grouped_matmul(
    x: Float[Array, "rows columns"],
    stored: Stored,
    kind: str,
    matrix: tuple[int, int],
    blocks: Blocks,
    *,
    backend: Backend,
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """`x[r] @ W[e].T` for the expert e of each row's block, in `x.dtype`; zero in blocks that are not used.

    `W[experts, *matrix] = unpack(stored, kind, matrix, backend)`, `matrix = (outputs, columns)`; the rows of x are as
    many for each block. Kernels find an expert in the stored arrays by its index, since a slice of those would copy it,
    and leave blocks that are not used alone. Numbers are those of `quantized_matmul` for as many rows as a block has,
    and twice that for an x in another dtype than bfloat16. `interpret` runs the kernel on the CPU, in jnp.

    Derivatives with respect to x, in both modes, are those of the products with the decoded weights.

    Raises:
        ValueError: x does not end in the weight's columns, its rows are no equal blocks, or a plane of all experts has
            2 GiB or more on CUDA.
    """
    count, columns = blocks.owners.shape[0], matrix[1]
    if not count:
        return jnp.zeros((0, matrix[0]), x.dtype)
    if x.shape[1] != columns or x.shape[0] % count:
        raise ValueError(f"x must have {count} blocks of rows and the weight's {columns} columns, got shape {x.shape}")
    largest = max(math.prod(array.shape) * array.dtype.itemsize for array in stored)
    if backend == "triton" and largest >= _MOST_BYTES:
        raise ValueError(f"planes of all experts must have less than 2 GiB on CUDA, got {largest} bytes; use 'xla'")
    return _product(kind, matrix, backend, interpret, x, stored, blocks)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _product(
    kind: str, matrix: tuple[int, int], backend: Backend, interpret: bool, x: jax.Array, stored: Stored, blocks: Blocks
) -> jax.Array:
    grouped = x.reshape(blocks.owners.shape[0], -1, x.shape[1])
    if x.dtype == jnp.bfloat16:
        y = _multiply(kind, matrix, backend, interpret, grouped, stored, blocks, x.dtype)
        return _used(y, blocks).reshape(len(x), -1)
    both = jnp.concatenate(halves(grouped), axis=1)
    y = _multiply(kind, matrix, backend, interpret, both, stored, blocks, jnp.dtype(jnp.float32))
    total = y[:, : grouped.shape[1]] + y[:, grouped.shape[1] :]
    return _used(total, blocks).reshape(len(x), -1).astype(x.dtype)


@_product.defjvp
def _product_jvp(
    kind: str, matrix: tuple[int, int], backend: Backend, interpret: bool, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, stored, blocks = primals
    y = _product(kind, matrix, backend, interpret, x, stored, blocks)
    return y, reference_grouped_matmul(tangents[0], stored, kind, matrix, blocks, backend)


def reference_grouped_matmul(
    x: Float[Array, "rows columns"],
    stored: Stored,
    kind: str,
    matrix: tuple[int, int],
    blocks: Blocks,
    backend: Backend,
) -> Float[Array, "rows outputs"]:
    """The same products through XLA, one block after the other, with each one's weight decoded before it."""

    @jax.checkpoint  # or a derivative would keep every block's decoded weight
    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, expert = part
        own = tuple(jax.lax.dynamic_index_in_dim(array, expert, keepdims=False) for array in stored)
        return reference_matmul(rows, own, kind, matrix, backend)

    grouped = x.reshape(blocks.owners.shape[0], -1, x.shape[1])
    return _used(jax.lax.map(one, (grouped, blocks.owners)), blocks).reshape(len(x), -1)


def _used(y: jax.Array, blocks: Blocks) -> jax.Array:
    """Zeros in place of whatever lies in blocks that are not used; y is `[blocks, block, outputs]`."""
    return jnp.where((jnp.arange(y.shape[0]) < blocks.used)[:, None, None], y, 0)


def _multiply(
    kind: str,
    matrix: tuple[int, int],
    backend: Backend,
    interpret: bool,
    x: jax.Array,
    stored: Stored,
    blocks: Blocks,
    dtype: Any,
) -> jax.Array:
    """The products of bfloat16 blocks `[blocks, block, columns]`, filled up to the kernels' tiles and cut back."""
    form, (count, block, columns) = FORMATS[kind], x.shape
    shape = kernel_shape(kind, block, count, stored[-1].shape[-1], columns)
    config, kernel = config_for(shape, backend), kernel_for(shape, backend)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, shape.columns - columns))).reshape(count * block, -1)
    # Pallas takes 0.1 s to import, which only programs with kernels should pay.
    if backend == "tpu":
        from pallas_kernels.moe_grouped_matmul import tpu

        if kernel is TPU_DECODE:
            y = tpu.decode_matmul(x, stored, form, blocks, config, interpret=interpret).astype(dtype)
        else:
            y = tpu.prefill_matmul(x, stored, form, blocks, config, dtype=dtype, interpret=interpret)
    else:
        from pallas_kernels.moe_grouped_matmul import triton

        multiply = triton.decode_matmul if kernel is CUDA_DECODE else triton.prefill_matmul
        options: Any = {"dtype": dtype, "assembly": not interpret, "interpret": interpret}
        y = multiply(x, stored, form, blocks, config, **options)
    return y.reshape(count, block, -1)[..., : matrix[0]]


def kernel_shape(kind: str, block: int, blocks: int, rows: int, columns: int) -> MatmulShape:
    """What a kernel multiplies for so many blocks of rows; `rows` and `columns` of a matrix as it is stored."""
    form = FORMATS[kind]
    return MatmulShape(
        kind=kind, tokens=block, rows=rows, columns=groups_of(form, columns) * form.group, experts=blocks
    )
