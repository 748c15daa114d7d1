"""quantized_matmul: activations times the transpose of a weight in a backend's layout, by the kernel for the shape."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.config import (
    DECODE_TOKENS,
    decode_config,
    prefill_config,
    tpu_config,
    tpu_decode_config,
)
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import Stored, groups_of, unpack


def quantized_matmul(
    x: Float[Array, "*batch columns"],
    stored: Stored,
    kind: str,
    shape: tuple[int, int],
    *,
    backend: Backend,
    interpret: bool = False,
) -> Float[Array, "*batch rows"]:
    """`x @ unpack(stored, kind, shape, backend).T`, accumulated in float32, in `x.dtype`.

    Kernels multiply bfloat16. An x of another dtype enters as two bfloat16 rows, whose sum keeps 16 bits of mantissa.
    Up to 16 rows of activations meet exact codes, and the sums half-float scales (on TPU for `paired` formats without
    `supers`). Else weights are rounded to bfloat16, on CUDA with scales and offsets rounded first. `interpret` runs the
    kernel on the CPU, in jnp.

    Derivatives with respect to x, in both modes, are those of the product with the decoded weight.

    Raises:
        ValueError: x does not end in the weight's columns.
    """
    rows, columns = shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must end in the weight's {columns} columns, got shape {x.shape}")
    y = _product(kind, (rows, columns), backend, interpret, x.reshape(-1, columns), stored)
    return y.reshape(*x.shape[:-1], rows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _product(
    kind: str, shape: tuple[int, int], backend: Backend, interpret: bool, x: jax.Array, stored: Stored
) -> jax.Array:
    if not x.shape[0]:
        return jnp.zeros((0, shape[0]), x.dtype)
    if x.dtype == jnp.bfloat16:
        return _multiply(kind, shape, backend, interpret, x, stored, x.dtype)
    high = x.astype(jnp.bfloat16)
    low = (x.astype(jnp.float32) - high.astype(jnp.float32)).astype(jnp.bfloat16)
    y = _multiply(kind, shape, backend, interpret, jnp.concatenate([high, low]), stored, jnp.dtype(jnp.float32))
    return (y[: len(x)] + y[len(x) :]).astype(x.dtype)


@_product.defjvp
def _product_jvp(
    kind: str, shape: tuple[int, int], backend: Backend, interpret: bool, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, stored = primals
    y = _product(kind, shape, backend, interpret, x, stored)
    return y, reference_matmul(tangents[0], stored, kind, shape, backend)


def reference_matmul(
    x: Float[Array, "*batch columns"], stored: Stored, kind: str, shape: tuple[int, int], backend: Backend
) -> Float[Array, "*batch rows"]:
    """The same product through XLA, with the weight decoded in `x.dtype` before it."""
    weight = unpack(stored, kind, shape, backend).astype(x.dtype)
    product = jnp.einsum(
        "...k,nk->...n", x, weight, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return product.astype(x.dtype)


def _multiply(
    kind: str, shape: tuple[int, int], backend: Backend, interpret: bool, x: jax.Array, stored: Stored, dtype: Any
) -> jax.Array:
    """The product of bfloat16 rows, filled up to the kernels' tiles and cut back."""
    form, tokens = FORMATS[kind], x.shape[0]
    groups = groups_of(form, shape[1])
    x = jnp.pad(x, ((0, padded_tokens(tokens) - tokens), (0, groups * form.group - shape[1])))
    rows = stored[-1].shape[1]
    # Pallas takes 0.1 s to import, which only programs with kernels should pay.
    if backend == "tpu" and tokens <= DECODE_TOKENS and form.exact_on_tpu:
        from pallas_kernels.quantized_matmul.tpu_decode import decode_matmul as tpu_decode_matmul

        config = tpu_decode_config(x.shape[0], rows, x.shape[1])
        y = tpu_decode_matmul(x, stored, form, config, interpret=interpret).astype(dtype)
    elif backend == "tpu":
        from pallas_kernels.quantized_matmul.tpu import tpu_matmul

        config = tpu_config(x.shape[0], rows, x.shape[1])
        y = tpu_matmul(x, stored, form, config, dtype=dtype, interpret=interpret)
    elif tokens <= DECODE_TOKENS:
        from pallas_kernels.quantized_matmul.triton_decode import decode_matmul

        config = decode_config(form, rows, groups)
        y = decode_matmul(x, stored, form, config, assembly=not interpret, interpret=interpret).T.astype(dtype)
    else:
        from pallas_kernels.quantized_matmul.triton_prefill import prefill_matmul

        config = prefill_config(form, x.shape[0], rows)
        y = prefill_matmul(x, stored, form, config, dtype=dtype, assembly=not interpret, interpret=interpret)
    return y[:tokens, : shape[0]]


def padded_tokens(tokens: int) -> int:
    """Rows of activations that the kernels take: 8, 16, then multiples of a tile."""
    if tokens <= DECODE_TOKENS:
        return 8 if tokens <= 8 else 16
    tile = next((size for size in (32, 64) if tokens <= size), 128)
    return math.ceil(tokens / tile) * tile
