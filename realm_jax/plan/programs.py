"""Compiles traceable functions, and a model's steps, for a device that is not here, and says what the programs hold."""

from __future__ import annotations

import collections
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realm_jax.engine.batch import BatchShape, unpack_batch
from realm_jax.models import CausalLM
from realm_jax.plan.devices import Device
from realm_jax.sharding import MeshConfig, named_sharding

_KERNEL_CALLS = ("__gpu$xla.gpu.triton", "mosaic_gpu", "mosaic_gpu_v2", "tpu_custom_call")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """`seconds` to trace, lower and compile; bytes on one device; custom calls by target; the program as `text`.

    `output_bytes` are those of results that are not written over arguments.
    """

    seconds: float
    argument_bytes: int
    aliased_bytes: int
    output_bytes: int
    temporary_bytes: int
    calls: collections.Counter[str]
    text: str = dataclasses.field(repr=False)

    @property
    def kernels(self) -> int:
        """How many calls of Pallas kernels the program has."""
        return sum(count for name, count in self.calls.items() if name in _KERNEL_CALLS)


def device_mesh(device: Device, chips: int = 1) -> Mesh:
    """The axes of `realm_jax.sharding` over some chips of a device, all of them along `tensor`.

    The process must have the device's environment.
    """
    if device.platform == "cuda":
        options = {"platform": "cuda", "topology": device.topology(chips), "target_config": device.description}
        topology = topologies.get_topology_desc(**options)
    else:
        topology = topologies.get_topology_desc(device.topology(chips), "tpu")
    return MeshConfig(tensor=chips).mesh(topology.devices)


def compile_for(
    mesh: Mesh,
    platform: str,
    function: Callable[..., Any],
    operands: tuple[Any, ...],
    donate: tuple[int, ...] = (),
    results: Any = None,
) -> Compiled:
    """Compile `function` for the mesh's devices from the shapes of its operands alone.

    Operands without a sharding are the same on every device; `results` are the shardings of what is returned, None
    where the compiler chooses.
    """
    same = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_split(a) or same), operands)
    options = {} if results is None else {"out_shardings": results}
    start = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(function, donate_argnums=donate, **options).trace(*placed)
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    assert memory is not None
    return Compiled(
        seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        calls=collections.Counter(re.findall(r'custom_call_target="([^"]*)"', text)),
        text=text,
    )


def _split(operand: Any) -> NamedSharding | None:
    sharding = getattr(operand, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def compile_step(model: CausalLM, shape: BatchShape, caches: Sequence[Any], mesh: Mesh, platform: str) -> Compiled:
    """One step of a model that was built abstractly, on the same mesh where that has several devices.

    `(weights, caches, batch) -> (logits, caches)`, the caches donated and split by their heads.
    """
    graphdef, state = nnx.split(model)
    shardings = [spec.shardings(cache, mesh) for spec, cache in zip(model.cache_spec(), caches, strict=True)]
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), list(caches), shardings)
    buffer = jax.ShapeDtypeStruct((shape.size,), jnp.int32)

    def step(state: Any, cache: Any, buffer: jax.Array) -> tuple[jax.Array, Any]:
        output = nnx.merge(graphdef, state)(unpack_batch(buffer, shape), cache)
        return output.logits, output.cache

    results = (named_sharding(mesh), shardings)
    return compile_for(mesh, platform, step, (state, placed, buffer), donate=(1,), results=results)
