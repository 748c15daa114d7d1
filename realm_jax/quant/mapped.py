"""MappedTensor: a weight that is still in its file, in the place of the array that holds it once it is read."""

from __future__ import annotations

import dataclasses
import mmap
from typing import Any

import jax
import numpy as np

from realm_jax.gguf import RawTensor
from realm_jax.quant.layouts import layout_for
from realm_jax.quant.qtensor import QTensor, abstract, from_raw, stored_shape_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class MappedTensor:
    """The `data` of a QTensor before it is read: one leaf, also where the layout has several arrays."""

    raw: RawTensor
    layout: str = "blocks"

    @property
    def aval(self) -> Any:
        """Shape and dtype of what `read` returns, or a tuple of them, in JAX's form."""
        return stored_shape_dtype(self.raw, self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape, of the first array where a layout has several."""
        return jax.tree.leaves(self.aval)[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes once it is read."""
        return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(self.aval))

    def read(self) -> Any:
        """The data, on the default device, in memory when this returns.

        An aligned tensor in the file's blocks becomes a view of the mapped file on the CPU, whose pages are read; any
        other is packed or copied, and the file's pages are given back.
        """
        self.raw.read_ahead()
        data = from_raw(self.raw, layout=self.layout).data
        if self.is_behind(data):
            self.raw.data[:: mmap.PAGESIZE].max()  # touches every page
        else:
            jax.block_until_ready(data)
            self.raw.release()
        return data

    def is_behind(self, data: Any) -> bool:
        """Whether the data that `read` returned is a view of the file."""
        first = jax.tree.leaves(data)[0]
        on_host = next(iter(first.devices())).platform == "cpu"
        return on_host and first.unsafe_buffer_pointer() == self.raw.data.ctypes.data

    def take_rows(self, ids: np.ndarray) -> QTensor:
        """Rows `ids[N]` of a matrix `[rows, columns]` as a weight `[N, columns]`; of the file no others are read."""
        raw = self.raw
        rows = raw.data.reshape(raw.shape[0], -1)[np.clip(ids, 0, raw.shape[0] - 1)]
        gathered = RawTensor(raw.name, raw.ggml_type, (len(ids), *raw.shape[1:]), rows.reshape(-1))
        return from_raw(gathered, layout=self.layout)

    def abstract_rows(self, count: int) -> QTensor:
        """What `take_rows` returns for `count` ids, with shape and dtype in place of the data."""
        return abstract(dataclasses.replace(self.raw, shape=(count, *self.raw.shape[1:])), self.layout)


def aval_of(leaf: Any) -> Any:
    """Shape and dtype of an array, or of what reading a MappedTensor gives, in JAX's form."""
    return leaf.aval if isinstance(leaf, MappedTensor) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def mapped(raw: RawTensor, layout: str = "blocks") -> QTensor:
    """What `from_raw(raw, layout=layout)` returns, with a MappedTensor in place of the data."""
    return abstract(raw, layout).with_data(MappedTensor(raw, layout_for(layout, raw.ggml_type, raw.shape)))
