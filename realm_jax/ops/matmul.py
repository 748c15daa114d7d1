"""quantized_matmul: activations times the transpose of a weight that stays in its stored blocks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from realm_jax.ops.backends import choose_implementation
from realm_jax.quant import QTensor, dequantize

# A decoded piece of this many bytes stays in a core's cache on current CPUs, and bounds temporaries everywhere:
# the 262k-row head of a 270M-parameter model would otherwise decode to 671 MB at every step.
_DECODED_BYTES = 32 * 2**20


def quantized_matmul(
    x: Float[Array, "*batch k"], w: QTensor, *, implementation: str | None = None
) -> Float[Array, "*batch n"]:
    """`x @ dequantize(w).T` for `w[n, k]`, accumulated in float32, returned in `x.dtype`.

    Differentiable in `x` in both modes: the weight is decoded again in the backward pass instead of being kept in
    full precision. With `w` sharded by rows every device decodes its own rows; sharded by whole groups along `k`
    the partial products are summed across devices.
    """
    choose_implementation(implementation)
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(f"x must end in the weight's {w.shape[-1]} columns, got shape {x.shape}")
    if w.is_dense:
        return _dot(x, w)
    return jax.checkpoint(_decode_and_dot)(x, w)


def _decode_and_dot(x: jax.Array, w: QTensor) -> jax.Array:
    rows, columns = w.shape
    pieces = _pieces(rows, columns * x.dtype.itemsize)
    if pieces == 1:
        return _dot(x, w)
    # Piece i holds rows i, i + pieces, i + 2 * pieces, ...: with rows sharded over devices each piece stays local.
    stored = w.data.reshape(rows // pieces, pieces, *w.data.shape[1:])

    def piece(i: jax.Array) -> jax.Array:
        data = jax.lax.dynamic_index_in_dim(stored, i, axis=1, keepdims=False)
        return _dot(x, QTensor(data, w.ggml_type))

    out = jax.lax.map(piece, jnp.arange(pieces))
    return jnp.moveaxis(out, 0, -1).reshape(*x.shape[:-1], rows)


def _dot(x: jax.Array, w: QTensor) -> jax.Array:
    return jax.lax.dot_general(
        x,
        dequantize(w, x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)


def _pieces(rows: int, row_bytes: int) -> int:
    """The fewest equal pieces of rows that each decode to at most `_DECODED_BYTES`, or to one row."""
    fewest = math.ceil(rows * row_bytes / _DECODED_BYTES)
    return next(n for n in range(fewest, rows + 1) if rows % n == 0) if fewest > 1 else 1
