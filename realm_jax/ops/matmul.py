"""quantized_matmul: activations times the transpose of a weight that stays in its stored blocks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import cpu_kernels
from pallas_kernels import quantized_matmul as pallas
from pallas_kernels.case import Backend
from realm_jax.ops import mlx
from realm_jax.ops.backends import (
    choose_implementation,
    instruction_set_of,
    layout_name,
    pallas_activations,
    pallas_backend,
)
from realm_jax.quant import QTensor, dequantize
from realm_jax.quant.layouts import layout_for

# Bytes of a weight that are decoded at a time. A piece stays in a core's cache, and its loop keeps XLA from decoding
# every weight of a model ahead of its use: without pieces, temporaries are the whole model in float32.
_DECODED_BYTES = 2**20
# MLX decodes where a product asks for it, and the host waits for the GPU at the end of every loop.
_DECODED_BYTES_ON_METAL = 2**28


def quantized_matmul(
    x: Float[Array, "*batch k"], w: QTensor, *, implementation: str | None = None
) -> Float[Array, "*batch n"]:
    """`x @ dequantize(w).T` for `w[n, k]`, accumulated in float32, returned in `x.dtype`.

    `cpu` multiplies weights in tiles: quantised ones by x in 8 bits, plain floats by x as it is (see
    `cpu_kernels.quantized_matmul`). `triton` and `tpu` multiply bfloat16, `triton_int8` more than 16 rows of x in 8
    bits (see `pallas_kernels.quantized_matmul`), and `mps` float32 (see `mlx`); weights of types that have no layout
    there go through XLA. So does a dense weight, one that is W itself in an array, with every implementation. `xla`
    takes weights in every layout.

    Differentiable in `x` in both modes: the weight is decoded again in the backward pass instead of being kept in
    full precision. With `w` sharded by rows every device decodes its own rows; sharded by whole groups along `k`
    the partial products are summed across devices.
    """
    chosen = choose_implementation(implementation)
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(f"x must end in the weight's {w.shape[-1]} columns, got shape {x.shape}")
    if w.is_dense:
        return _dot(x, w)
    wanted = layout_name(chosen)
    if chosen != "xla" and w.layout != layout_for(wanted, w.ggml_type, w.shape):
        raise ValueError(
            f"implementation {chosen!r} needs a {w.ggml_type.name} weight in layout {wanted!r}, got {w.layout!r}: "
            f"load it with from_raw(..., layout={wanted!r})"
        )
    if w.layout in ("triton", "tpu"):
        return _pallas_matmul(x, w, chosen)
    if w.layout == "mps":
        return mlx.quantized_matmul(x, w.data, w.ggml_type) if chosen == "mps" else _dot_again(x, w)
    if w.layout == "cpu":
        rows, columns = w.shape
        if chosen == "xla":
            return cpu_kernels.reference_matmul(x, w.data, w.ggml_type.name, (rows, columns))
        instruction_set = instruction_set_of(chosen)
        return cpu_kernels.quantized_matmul(
            x, w.data, w.ggml_type.name, (rows, columns), instruction_set=instruction_set
        )
    return _decode_and_dot(x, w, _DECODED_BYTES_ON_METAL if chosen == "mps" else _DECODED_BYTES)


def _pallas_matmul(x: jax.Array, w: QTensor, implementation: str) -> jax.Array:
    w.check_whole()
    kind, (rows, columns) = w.ggml_type.name, w.shape
    chosen = pallas_backend(implementation)
    if chosen is None:
        layout: Backend = "triton" if w.layout == "triton" else "tpu"
        return pallas.reference_matmul(x, w.data, kind, (rows, columns), layout)
    backend, interpret = chosen
    activations = pallas_activations(implementation)
    options = {"backend": backend, "activations": activations, "interpret": interpret}
    return pallas.quantized_matmul(x, w.data, kind, (rows, columns), **options)


def _decode_and_dot(x: jax.Array, w: QTensor, decoded_bytes: int) -> jax.Array:
    rows, columns = w.shape
    fewest = math.ceil(rows * columns * 4 / decoded_bytes)
    if fewest <= 1:
        return _dot_again(x, w)
    pieces = next((n for n in range(fewest, min(4 * fewest, rows) + 1) if rows % n == 0), None)
    out = _interleaved(x, w, pieces) if pieces else _overlapping(x, w, fewest)
    return out.reshape(*x.shape[:-1], rows)


def _interleaved(x: jax.Array, w: QTensor, pieces: int) -> jax.Array:
    """Piece i holds rows i, i + pieces, i + 2 pieces, ...: with rows sharded over devices each piece stays local."""
    stored = w.data.reshape(-1, pieces, *w.data.shape[1:])

    def piece(i: jax.Array) -> jax.Array:
        data = jax.lax.dynamic_index_in_dim(stored, i, axis=1, keepdims=False)
        return _dot_again(x, QTensor(data, w.ggml_type))

    return jnp.moveaxis(jax.lax.map(piece, jnp.arange(pieces)), 0, -1)


def _overlapping(x: jax.Array, w: QTensor, pieces: int) -> jax.Array:
    """Row counts without a fitting divisor: contiguous pieces, the last of which begins inside the one before."""
    rows = w.shape[0]
    size = math.ceil(rows / pieces)

    def piece(i: jax.Array) -> jax.Array:
        start = jnp.minimum(i * size, rows - size)
        return _dot_again(x, QTensor(jax.lax.dynamic_slice_in_dim(w.data, start, size), w.ggml_type))

    out = jax.lax.map(piece, jnp.arange(pieces))
    full = jnp.moveaxis(out[:-1], 0, -2).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([full, out[-1][..., (pieces * size - rows) :]], axis=-1)


@jax.checkpoint
def _dot_again(x: jax.Array, w: QTensor) -> jax.Array:
    """`_dot`, decoding again in the backward pass: each piece by itself, or a loop would keep all of them."""
    return _dot(x, w)


def _dot(x: jax.Array, w: QTensor) -> jax.Array:
    return jax.lax.dot_general(
        x,
        dequantize(w, x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)
