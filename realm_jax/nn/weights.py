"""Where modules take their tensors from: a named, scoped, checked view of a file's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from realm_jax.quant import QTensor, dequantize


class Weight(nnx.Variable):
    """A frozen weight that holds a QTensor. Not an nnx.Param: integer leaves have no gradient."""


class WeightError(ValueError):
    """A tensor that the architecture needs is missing, or has another shape than the metadata says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors under a name prefix. `load(name)` returns a QTensor (its leaf may be abstract) or None.

    `taken` collects the names that modules asked for, so that a loader can refuse a file with tensors nobody uses.
    `total_elements` counts the weights of all tensors.
    """

    load: Callable[[str], QTensor | None]
    taken: set[str]
    prefix: str = ""
    implementation: str = "xla"
    total_elements: int = 0

    def scope(self, name: str) -> Weights:
        """The weights below `name`, as in `blk.3`."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def layers(self, count: int) -> list[Weights]:
        """The weights of each of `count` layers."""
        return [self.scope(f"blk.{i}") for i in range(count)]

    def find(self, name: str, shape: tuple[int, ...]) -> QTensor | None:
        """The tensor `name`, or None where the file has none; its shape is checked."""
        full = self.prefix + name
        tensor = self.load(full)
        if tensor is None:
            return None
        if tensor.shape != shape:
            raise WeightError(f"tensor {full} must have shape {shape} by the file's metadata, got {tensor.shape}")
        self.taken.add(full)
        return tensor

    def tensor(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The tensor `name` in its stored form."""
        found = self.find(name, shape)
        if found is None:
            raise WeightError(f"the file has no tensor {self.prefix}{name}, which its architecture needs")
        return Weight(found)

    def vector(self, name: str, shape: tuple[int, ...]) -> nnx.Param:
        """A small tensor (norm, bias, sink) in float32."""
        return nnx.Param(_float32(self.tensor(name, shape).get_value()))


def _float32(tensor: QTensor) -> jax.Array | jax.ShapeDtypeStruct:
    if isinstance(jax.tree.leaves(tensor.data)[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(tensor.shape, jnp.float32)
    return dequantize(tensor)
