"""QTensor: one weight of a GGUF file on a device, in the file's own blocks, decoded only where it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.quant.blocks import decode_blocks

_DENSE_DTYPES = {
    GGMLType.F32: np.dtype(np.float32),
    GGMLType.F16: np.dtype(np.float16),
    GGMLType.BF16: np.dtype(jnp.bfloat16),
}


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
    """A weight `W[*lead, K]` that stays in its stored form. The pytree has one leaf, `data`.

    Quantised types: `data` is `uint8[*lead, K // block_size, type_size]`, the blocks exactly as the file holds
    them. F32, F16 and BF16: `data` is `W` itself in that dtype. `ggml_type` is static, `shape` follows from `data`.
    """

    data: Any
    ggml_type: GGMLType

    @property
    def is_dense(self) -> bool:
        """Whether `data` is the weight itself rather than blocks of codes."""
        return self.ggml_type in _DENSE_DTYPES

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape `(*lead, K)`."""
        if self.is_dense:
            return tuple(self.data.shape)
        *lead, blocks, _ = self.data.shape
        return (*lead, blocks * self.ggml_type.block_size)

    @property
    def ndim(self) -> int:
        """The number of logical axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held by the stored form."""
        return int(self.data.nbytes)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any]], GGMLType]:
        """Flatten for JAX: one child, the type as static data."""
        return ((jax.tree_util.GetAttrKey("data"), self.data),), self.ggml_type

    @classmethod
    def tree_unflatten(cls, ggml_type: GGMLType, children: tuple[Any]) -> QTensor:
        """Rebuild from JAX's flattened form."""
        return cls(children[0], ggml_type)


def stored_shape_dtype(raw: RawTensor) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the `data` leaf that `from_raw(raw)` holds; nothing is read."""
    kind = raw.ggml_type
    if kind == GGMLType.F64:
        return jax.ShapeDtypeStruct(raw.shape, jnp.float32)
    if kind in _DENSE_DTYPES:
        return jax.ShapeDtypeStruct(raw.shape, _DENSE_DTYPES[kind])
    *lead, k = raw.shape
    return jax.ShapeDtypeStruct((*lead, k // kind.block_size, kind.type_size), jnp.uint8)


def from_raw(raw: RawTensor, device: Any = None) -> QTensor:
    """Place a file's tensor on a device (or a sharding) as it is stored.

    On the CPU a tensor whose bytes are aligned for XLA stays a view of the memory-mapped file; others are copied
    once. F64 becomes float32, the widest type JAX computes in by default.
    """
    stored = stored_shape_dtype(raw)
    if raw.ggml_type == GGMLType.F64:
        host = raw.data.view(np.float64).astype(np.float32).reshape(stored.shape)
        return QTensor(jax.device_put(host, device), GGMLType.F32)
    host = raw.data.view(stored.dtype).reshape(stored.shape)
    return QTensor(jax.device_put(host, device), raw.ggml_type)


def dequantize(w: QTensor, dtype: Any = jnp.float32) -> jax.Array:
    """The weight `W[*lead, K]` in `dtype`, decoded in float32 and rounded once."""
    if w.is_dense:
        return w.data.astype(dtype)
    return decode_blocks(w.ggml_type, w.data).reshape(w.shape).astype(dtype)


def take_rows(w: QTensor, rows: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """`dequantize(w)[rows]` for `w[N, K]`, decoding only those rows: `int32[*r] -> dtype[*r, K]`."""
    return dequantize(QTensor(jnp.take(w.data, rows, axis=0, mode="clip"), w.ggml_type), dtype)
