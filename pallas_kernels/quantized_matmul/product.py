"""quantized_matmul: activations times the transpose of a weight in a backend's layout, by the kernel for the shape."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.case import Backend
from pallas_kernels.halves import halves
from pallas_kernels.quantized_matmul.config import (
    CUDA_DECODE,
    CUDA_INT8,
    DECODE_TOKENS,
    TPU_DECODE,
    TPU_PREFILL,
    Activations,
    Config,
    MatmulShape,
    config_for,
    kernel_for,
    padded_tokens,
)
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import Stored, groups_of, stored_shapes, unpack
from pallas_kernels.quantized_matmul.rounding import round_rows


def quantized_matmul(
    x: Float[Array, "*batch columns"],
    stored: Stored,
    kind: str,
    shape: tuple[int, int],
    *,
    backend: Backend,
    activations: Activations = "bfloat16",
    interpret: bool = False,
    config: Config | None = None,
) -> Float[Array, "*batch rows"]:
    """`x @ unpack(stored, kind, shape, backend).T`, accumulated in float32, in `x.dtype`.

    Kernels multiply bfloat16. An x of another dtype enters as two bfloat16 rows, whose sum keeps 16 bits of mantissa.
    Up to 16 rows of activations meet exact codes, and the sums half-float scales (on TPU for `paired` formats without
    `supers`). Else weights are rounded to bfloat16, on CUDA with scales and offsets rounded first. `interpret` runs the
    kernel on the CPU, in jnp. `config`: block sizes of the kernel; None for what `config_for` picks.

    With `activations="int8"`, on CUDA alone, more than 16 rows of any dtype are rounded to 8 bits (see `round_rows`)
    where the format has groups of 32, and meet exact codes: sums of a group's products are exact, and float32 sums take
    the scales, groups ascending. An output differs from the exact product by at most `d / 2 sum |w|` of each group, d
    its scale, and by rounding in float32. Fewer rows, whose products are not what bounds them, and formats with groups
    of 16, which would fill half of an instruction, are multiplied as without it.

    Derivatives with respect to x, in both modes, are those of the product with the decoded weight: straight through
    the rounding.

    Raises:
        ValueError: x does not end in the weight's columns, activations that the backend does not multiply, or a config
            that does not fit the shape.
    """
    _require(activations, backend)
    rows, columns = shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must end in the weight's {columns} columns, got shape {x.shape}")
    options: Any = {"backend": backend, "activations": activations, "interpret": interpret, "config": config}
    call = _Call(kind=kind, shape=(rows, columns), **options)
    y = _product(call, x.reshape(-1, columns), stored)
    return y.reshape(*x.shape[:-1], rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What is static in a product."""

    kind: str
    shape: tuple[int, int]
    backend: Backend
    activations: Activations
    interpret: bool
    config: Config | None

    def kernel_shape(self, tokens: int) -> MatmulShape:
        """What the kernel for so many rows multiplies."""
        return kernel_shape(self.kind, tokens, self.shape, self.backend, self.activations)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(call: _Call, x: jax.Array, stored: Stored) -> jax.Array:
    if not x.shape[0]:
        return jnp.zeros((0, call.shape[0]), x.dtype)
    if x.dtype == jnp.bfloat16:
        return _multiply(call, x, stored, x.dtype)
    if call.kernel_shape(len(x)).activations == "int8":
        return _multiply(call, x, stored, jnp.dtype(jnp.float32)).astype(x.dtype)
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


def kernel_shape(
    kind: str, tokens: int, shape: tuple[int, int], backend: Backend, activations: Activations = "bfloat16"
) -> MatmulShape:
    """What a kernel multiplies for a product of so many rows with a weight of this shape, filled up to whole tiles.

    Raises:
        ValueError: activations that the backend does not multiply.
    """
    _require(activations, backend)
    form, rows = FORMATS[kind], stored_shapes(kind, shape, backend)[-1].shape[-1]
    return MatmulShape(
        kind=kind,
        tokens=padded_tokens(tokens),
        rows=rows,
        columns=groups_of(form, shape[1]) * form.group,
        activations=activations if form.takes_int8 and tokens > DECODE_TOKENS else "bfloat16",
    )


def _require(activations: Activations, backend: Backend) -> None:
    if activations not in get_args(Activations) or (activations == "int8" and backend != "triton"):
        raise ValueError(f"activations must be bfloat16, or int8 on CUDA, got {activations!r} for {backend!r}")


def _multiply(call: _Call, x: jax.Array, stored: Stored, dtype: Any) -> jax.Array:
    """The product of rows, bfloat16 or to be rounded to 8 bits, filled up to the kernels' tiles and cut back.

    CUDA's decode kernel fills up the rows by itself.
    """
    form, (tokens, columns) = FORMATS[call.kind], x.shape
    shape = call.kernel_shape(tokens)
    config, kernel = config_for(shape, call.backend, call.config), kernel_for(shape, call.backend)
    rows = tokens if kernel is CUDA_DECODE else shape.tokens
    x = jnp.pad(x, ((0, rows - tokens), (0, shape.columns - columns)))
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

        y = decode_matmul(x, stored, form, config, dtype=dtype, assembly=not call.interpret, **options).T
    elif kernel is CUDA_INT8:
        from pallas_kernels.quantized_matmul.triton_int8 import int8_matmul

        rounded = round_rows(x, form.group)
        y = int8_matmul(rounded, stored, form, config, dtype=dtype, assembly=not call.interpret, **options)
    else:
        from pallas_kernels.quantized_matmul.triton_prefill import prefill_matmul

        y = prefill_matmul(x, stored, form, config, dtype=dtype, assembly=not call.interpret, **options)
    return y[:tokens, : call.shape[0]]
