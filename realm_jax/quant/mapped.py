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
    """The `data` leaf of a QTensor before it is read. Shape and dtype are those that `read` returns."""

    raw: RawTensor
    layout: str = "blocks"

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype in JAX's form."""
        return stored_shape_dtype(self.raw, self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.aval.shape

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.aval.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes once it is read."""
        return self.aval.size * self.dtype.itemsize

    def read(self) -> jax.Array:
        """The leaf, on the default device, in memory when this returns.

        An aligned tensor in the file's blocks becomes a view of the mapped file on the CPU, whose pages are read; any
        other is packed or copied, and the file's pages are given back.
        """
        self.raw.read_ahead()
        data = from_raw(self.raw, layout=self.layout).data
        if self.is_behind(data):
            self.raw.data[:: mmap.PAGESIZE].max()  # touches every page
        else:
            data.block_until_ready()
            self.raw.release()
        return data

    def is_behind(self, data: Any) -> bool:
        """Whether an array that `read` returned is a view of the file."""
        on_host = next(iter(data.devices())).platform == "cpu"
        return on_host and data.unsafe_buffer_pointer() == self.raw.data.ctypes.data

    def take_rows(self, ids: np.ndarray) -> QTensor:
        """Rows `ids[N]` of a matrix `[rows, columns]` as a weight `[N, columns]`; of the file no others are read."""
        raw = self.raw
        rows = raw.data.reshape(raw.shape[0], -1)[np.clip(ids, 0, raw.shape[0] - 1)]
        gathered = RawTensor(raw.name, raw.ggml_type, (len(ids), *raw.shape[1:]), rows.reshape(-1))
        return from_raw(gathered, layout=self.layout)

    def abstract_rows(self, count: int) -> QTensor:
        """What `take_rows` returns for `count` ids, with shape and dtype in place of the data."""
        return abstract(dataclasses.replace(self.raw, shape=(count, *self.raw.shape[1:])), self.layout)


def mapped(raw: RawTensor, layout: str = "blocks") -> QTensor:
    """What `from_raw(raw, layout=layout)` returns, with a MappedTensor in place of the data."""
    return abstract(raw, layout).with_data(MappedTensor(raw, layout_for(layout, raw.ggml_type, raw.shape)))
