"""quantized_matmul: activations times the transpose of a weight in a backend's layout, by the kernel for the shape."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.case import Backend
from pallas_kernels.halves import halves
from pallas_kernels.quantized_matmul.config import (
    CUDA_DECODE,
    DECODE_TOKENS,
    TPU_DECODE,
    TPU_PREFILL,
    Config,
    MatmulShape,
    config_for,
    kernel_for,
)
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import Stored, groups_of, stored_shapes, unpack


def quantized_matmul(
    x: Float[Array, "*batch columns"],
    stored: Stored,
    kind: str,
    shape: tuple[int, int],
    *,
    backend: Backend,
    interpret: bool = False,
    config: Config | None = None,
) -> Float[Array, "*batch rows"]:
    """`x @ unpack(stored, kind, shape, backend).T`, accumulated in float32, in `x.dtype`.

    Kernels multiply bfloat16. An x of another dtype enters as two bfloat16 rows, whose sum keeps 16 bits of mantissa.
    Up to 16 rows of activations meet exact codes, and the sums half-float scales (on TPU for `paired` formats without
    `supers`). Else weights are rounded to bfloat16, on CUDA with scales and offsets rounded first. `interpret` runs the
    kernel on the CPU, in jnp. `config`: block sizes of the kernel; None for what `config_for` picks.

    Derivatives with respect to x, in both modes, are those of the product with the decoded weight.

    Raises:
        ValueError: x does not end in the weight's columns, or a config that does not fit the shape.
    """
    rows, columns = shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must end in the weight's {columns} columns, got shape {x.shape}")
    call = _Call(kind=kind, shape=(rows, columns), backend=backend, interpret=interpret, config=config)
    y = _product(call, x.reshape(-1, columns), stored)
    return y.reshape(*x.shape[:-1], rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What is static in a product."""

    kind: str
    shape: tuple[int, int]
    backend: Backend
    interpret: bool
    config: Config | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(call: _Call, x: jax.Array, stored: Stored) -> jax.Array:
    if not x.shape[0]:
        return jnp.zeros((0, call.shape[0]), x.dtype)
    if x.dtype == jnp.bfloat16:
        return _multiply(call, x, stored, x.dtype)
    y = _multiply(call, jnp.concatenate(halves(x)), stored, jnp.dtype(jnp.float32))
    return (y[: len(x)] + y[len(x) :]).astype(x.dtype)


@_product.defjvp
def _product_jvp(call: _Call, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    x, stored = primals
    return _product(call, x, stored), reference_matmul(tangents[0], stored, call.kind, call.shape, call.backend)


def reference_matmul(
    x: Float[Array, "*batch columns"], stored: Stored, kind: str, shape: tuple[int, int], backend: Backend
) -> Float[Array, "*batch rows"]:
    """The same product through XLA, with the weight decoded in `x.dtype` before it."""
    weight = unpack(stored, kind, shape, backend).astype(x.dtype)
    product = jnp.einsum(
        "...k,nk->...n", x, weight, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return product.astype(x.dtype)


def kernel_shape(kind: str, tokens: int, shape: tuple[int, int], backend: Backend) -> MatmulShape:
    """What a kernel multiplies for a product of so many rows with a weight of this shape, filled up to whole tiles."""
    form, rows = FORMATS[kind], stored_shapes(kind, shape, backend)[-1].shape[-1]
    return MatmulShape(
        kind=kind, tokens=padded_tokens(tokens), rows=rows, columns=groups_of(form, shape[1]) * form.group
    )


def _multiply(call: _Call, x: jax.Array, stored: Stored, dtype: Any) -> jax.Array:
    """The product of bfloat16 rows, filled up to the kernels' tiles and cut back."""
    form, (tokens, columns) = FORMATS[call.kind], x.shape
    shape = kernel_shape(call.kind, tokens, call.shape, call.backend)
    config, kernel = config_for(shape, call.backend, call.config), kernel_for(shape, call.backend)
    x = jnp.pad(x, ((0, shape.tokens - tokens), (0, shape.columns - columns)))
    options: Any = {"interpret": call.interpret}
    # Pallas takes 0.1 s to import, which only programs with kernels should pay.
    if kernel is TPU_DECODE:
        from pallas_kernels.quantized_matmul.tpu_decode import decode_matmul as tpu_decode_matmul

        y = tpu_decode_matmul(x, stored, form, config, **options).astype(dtype)
    elif kernel is TPU_PREFILL:
        from pallas_kernels.quantized_matmul.tpu import tpu_matmul

        y = tpu_matmul(x, stored, form, config, dtype=dtype, **options)
    elif kernel is CUDA_DECODE:
        from pallas_kernels.quantized_matmul.triton_decode import decode_matmul

        y = decode_matmul(x, stored, form, config, assembly=not call.interpret, **options).T.astype(dtype)
    else:
        from pallas_kernels.quantized_matmul.triton_prefill import prefill_matmul

        y = prefill_matmul(x, stored, form, config, dtype=dtype, assembly=not call.interpret, **options)
    return y[:tokens, : call.shape[0]]


def padded_tokens(tokens: int) -> int:
    """Rows of activations that the kernels take: 8, 16, then multiples of a tile."""
    if tokens <= DECODE_TOKENS:
        return 8 if tokens <= 8 else 16
    tile = next((size for size in (32, 64) if tokens <= size), 128)
    return math.ceil(tokens / tile) * tile
