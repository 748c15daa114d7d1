"""QTensor: one weight of a GGUF file on a device, in a stored layout, decoded only where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cpu_kernels import Arena
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.quant.layouts import LAYOUTS, Matrix, layout_for
from realm_jax.quant.parts import on_mesh, place_parts, stored_in_parts
from realm_jax.sharding import Split, parts, place, split_counts

_DENSE_DTYPES = {
    GGMLType.F32: np.dtype(np.float32),
    GGMLType.F16: np.dtype(np.float16),
    GGMLType.BF16: np.dtype(jnp.bfloat16),
}


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
    """A weight `W[*lead, K]` that stays in its stored form. The pytree has one leaf, `data`, or few.

    Quantised types: `data` is in a `layout` of `quant.layouts`, by default `uint8[*lead, K // block_size, type_size]`,
    the blocks exactly as the file holds them; layouts of accelerators are tuples of arrays. F32, F16 and BF16: in the
    layout `blocks`, `data` is `W` itself in that dtype. `ggml_type`, `layout` and `matrix` are static. `matrix` is
    (rows, columns) where `data` does not tell them: in layouts whose last rows or columns are filled up. `split`,
    static too, says which axes of a mesh the axes of W are split over; None: it lies on one device.
    """

    data: Any
    ggml_type: GGMLType
    layout: str = "blocks"
    matrix: Matrix | None = None
    split: Split | None = None

    @property
    def is_dense(self) -> bool:
        """Whether `data` is the weight itself rather than codes."""
        return self.ggml_type in _DENSE_DTYPES and self.layout == "blocks"

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape `(*lead, K)`."""
        if self.is_dense:
            return tuple(self.data.shape)
        if self.matrix is not None:
            return (*jax.tree.leaves(self.data)[0].shape[:-2], *self.matrix)
        *lead, blocks, _ = self.data.shape
        return (*lead, blocks * self.ggml_type.block_size)

    @property
    def ndim(self) -> int:
        """The number of logical axes."""
        return len(self.shape)

    @property
    def units(self) -> tuple[int, ...]:
        """How many pieces each axis of W has of which any equal number makes a weight; 1: it stays whole."""
        units = LAYOUTS[self.layout].units
        if units is None:
            raise ValueError(f"a weight that is split must be in another layout, got {self.layout!r}; leave out mesh")
        return units(self.ggml_type, self.shape)

    @property
    def specs(self) -> Any:
        """How `data` lies on the mesh that W is split over: a PartitionSpec for each of its arrays."""
        split = self.split or (None,) * self.ndim
        each = LAYOUTS[self.layout].spread(self.ggml_type, split, None)
        return jax.tree.unflatten(jax.tree.structure(self.data), [PartitionSpec(*axes) for axes in each])

    @property
    def nbytes(self) -> int:
        """Bytes held by the stored form."""
        return sum(int(part.nbytes) for part in jax.tree.leaves(self.data))

    def with_data(self, data: Any) -> QTensor:
        """The same kind of weight around other stored data, such as one expert's part of `data`."""
        return dataclasses.replace(self, data=data)

    def check_whole(self) -> None:
        """ValueError where this is all of a matrix whose parts were packed one by one: kernels take parts alone."""
        if self.split is not None and any(self.split[-2:]) and LAYOUTS[self.layout].apart:
            raise ValueError(
                f"a matrix in layout {self.layout!r} must be used part by part where it is split, got all of one split "
                f"over {self.split}; inside shard_map with its `specs` take `part(data)`"
            )

    def part(self, data: Any) -> QTensor:
        """What one device of the mesh that is traced for holds of a matrix: `data` is its part of the stored form."""
        matrix = self.matrix
        if matrix is not None and self.split is not None:
            matrix = (matrix[0] // parts(self.split[0]), matrix[1] // parts(self.split[1]))
        return dataclasses.replace(self, data=data, matrix=matrix, split=None)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any]], tuple[Any, ...]]:
        """Flatten for JAX: one child, the rest as static data."""
        return ((jax.tree_util.GetAttrKey("data"), self.data),), (self.ggml_type, self.layout, self.matrix, self.split)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: tuple[Any]) -> QTensor:
        """Rebuild from JAX's flattened form."""
        return cls(children[0], *static)


def stored_shape_dtype(raw: RawTensor, layout: str = "blocks", counts: Sequence[int] | None = None) -> Any:
    """Shape and dtype of the `data` that `from_raw(raw, layout=layout)` holds; nothing is read.

    `counts`: into how many parts the axes of the weight are cut, on a mesh.
    """
    kind = raw.ggml_type
    if kind == GGMLType.F64:
        return jax.ShapeDtypeStruct(raw.shape, jnp.float32)
    chosen = layout_for(layout, kind, raw.shape)
    if kind in _DENSE_DTYPES and chosen == "blocks":
        return jax.ShapeDtypeStruct(raw.shape, _DENSE_DTYPES[kind])
    if counts is not None and LAYOUTS[chosen].apart:
        return stored_in_parts(LAYOUTS[chosen], kind, raw.shape, counts)
    return LAYOUTS[chosen].stored(kind, raw.shape)


def abstract(raw: RawTensor, layout: str = "blocks", sharding: NamedSharding | None = None) -> QTensor:
    """What `from_raw(raw, sharding, layout=layout)` returns, with shape and dtype in place of the data."""
    chosen = layout_for(layout, raw.ggml_type, raw.shape)
    if sharding is None:
        return _around(stored_shape_dtype(raw, layout), raw, chosen, None)
    split = _split_of(sharding, raw)
    stored = stored_shape_dtype(raw, layout, split_counts(split, sharding.mesh.shape))
    return _around(on_mesh(LAYOUTS[chosen], raw.ggml_type, stored, split, sharding.mesh), raw, chosen, split)


def from_raw(raw: RawTensor, device: Any = None, *, layout: str = "blocks", arena: Arena | None = None) -> QTensor:
    """Place a file's tensor on a device, in `layout` where that holds its type, else as stored.

    On the CPU a tensor whose bytes are aligned for XLA stays a view of the memory-mapped file; others are copied
    once. With a NamedSharding, which is that of the weight `[*lead, rows, columns]` itself, each device is given its
    part of the stored form. F64 becomes float32, the widest type JAX computes in by default. What is packed for native
    kernels is a part of the `arena`.
    """
    chosen, stored = layout_for(layout, raw.ggml_type, raw.shape), stored_shape_dtype(raw)
    sharding = device if isinstance(device, NamedSharding) else None
    if raw.ggml_type == GGMLType.F64:
        host = raw.data.view(np.float64).astype(np.float32).reshape(stored.shape)
    elif raw.ggml_type in _DENSE_DTYPES and chosen == "blocks":
        host = raw.data.view(stored.dtype).reshape(stored.shape)
    elif sharding is not None and LAYOUTS[chosen].apart:
        whole = abstract(raw, layout, sharding)
        placed = whole.with_data(place_parts(LAYOUTS[chosen], raw, whole.data, sharding))
        raw.release()
        return placed
    else:
        host = LAYOUTS[chosen].pack(raw.data, raw.ggml_type, raw.shape, arena)
        if not (isinstance(host, np.ndarray) and np.shares_memory(host, raw.data)):
            raw.release()
    # An array whose parts are not packed one by one is cut along the first axes of the weight, in their order.
    data = jax.device_put(host, device) if sharding is None else place(host, sharding)
    return _around(data, raw, chosen, None if sharding is None else _split_of(sharding, raw))


def _split_of(sharding: NamedSharding, raw: RawTensor) -> Split:
    """The mesh axes of each axis of a weight; a PartitionSpec may leave out the last ones."""
    return (*sharding.spec, *(None,) * (len(raw.shape) - len(sharding.spec)))


def _around(data: Any, raw: RawTensor, layout: str, split: Split | None) -> QTensor:
    if layout == "blocks":
        kind = GGMLType.F32 if raw.ggml_type == GGMLType.F64 else raw.ggml_type
        return QTensor(data, kind, split=split)
    rows, columns = raw.shape[-2:]
    return QTensor(data, raw.ggml_type, layout, (rows, columns), split)


def dequantize(w: QTensor, dtype: Any = jnp.float32) -> jax.Array:
    """The weight itself: `dtype[*lead, K]`, decoded in float32 and then rounded to `dtype`."""
    if w.is_dense:
        return w.data.astype(dtype)
    w.check_whole()
    rows, columns = (1, w.shape[-1]) if w.ndim < 2 else w.shape[-2:]
    return LAYOUTS[w.layout].unpack(w.data, w.ggml_type, (rows, columns)).astype(dtype)


def take_rows(w: QTensor, rows: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """`dequantize(w)[rows]` for `w[N, K]`, decoding only those rows: `int32[*r] -> dtype[*r, K]`."""
    if w.is_dense:
        return jnp.take(w.data, rows, axis=0, mode="clip").astype(dtype)
    w.check_whole()
    count, columns = w.shape
    return LAYOUTS[w.layout].take_rows(w.data, w.ggml_type, (count, columns), rows).astype(dtype)
