"""Compiles traceable functions for a device that is not here, and says what the compiled program holds."""

from __future__ import annotations

import collections
import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_KERNEL_CALLS = ("__gpu$xla.gpu.triton", "mosaic_gpu", "mosaic_gpu_v2", "tpu_custom_call")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """`seconds` to trace, lower and compile; bytes on one device; the program's custom calls by target."""

    seconds: float
    argument_bytes: int
    aliased_bytes: int
    temporary_bytes: int
    calls: collections.Counter[str]

    @property
    def kernels(self) -> int:
        """How many calls of Pallas kernels the program has."""
        return sum(count for name, count in self.calls.items() if name in _KERNEL_CALLS)


def compile_for(
    mesh: Mesh, platform: str, function: Callable[..., Any], operands: tuple[Any, ...], donate: tuple[int, ...] = ()
) -> Compiled:
    """Compile `function` for the mesh's device from the shapes of its operands alone."""
    place = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), operands)
    start = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(function, donate_argnums=donate).trace(*placed)
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    return Compiled(
        seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        calls=collections.Counter(re.findall(r'custom_call_target="([^"]*)"', compiled.as_text() or "")),
    )
