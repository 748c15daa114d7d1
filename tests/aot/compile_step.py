"""Compiles a model's decode and prefill step for an accelerator that is not here, and prints what it takes as JSON.

usage: python compile_step.py h100|a100|v5e MODEL.gguf        (a process per target: libraries keep one for good)
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from realm_jax import gguf, models  # noqa: E402
from realm_jax.engine.batch import BatchShape, unpack_batch  # noqa: E402

DESCRIPTIONS = Path(__file__).parents[1] / "data" / "aot"
BLOCKS, BLOCK = 65, 64
SHAPES = {
    "decode": BatchShape(tokens=4, sequences=4, pages=8, rows=4, groups=2),
    "prefill": BatchShape(tokens=256, sequences=1, pages=8, rows=1, groups=2),
}


def device_mesh(target: str) -> Mesh:
    """One device of the target."""
    if target == "v5e":
        topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    else:
        description = (DESCRIPTIONS / f"{target}.txtpb").read_text()
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=description)
    return Mesh(np.array(topology.devices[:1]), ("device",))


def compile_step(path: str, shape: BatchShape, mesh: Mesh, platform: str) -> dict[str, Any]:
    """Compile one step of the model, from shapes alone."""
    place = NamedSharding(mesh, PartitionSpec())
    model = models.build(gguf.open(path), dtype=jnp.bfloat16, abstract=True)
    graphdef, state = nnx.split(model)
    caches = [layer.array(BLOCKS, BLOCK, "bfloat16") for layer in model.cache_spec()]
    buffer = jax.ShapeDtypeStruct((shape.size,), jnp.int32)
    operands = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), (state, caches, buffer))

    def step(state: Any, cache: Any, buffer: jax.Array) -> tuple[jax.Array, Any]:
        output = nnx.merge(graphdef, state)(unpack_batch(buffer, shape), cache)
        return output.logits, output.cache

    start = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(step, donate_argnums=1).trace(*operands)
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "compile_seconds": time.monotonic() - start,
        "argument_bytes": memory.argument_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "weight_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "cache_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in caches),
    }


def main(target: str, path: str) -> None:
    """Compile every step and print the results."""
    mesh = device_mesh(target)
    platform = "tpu" if target == "v5e" else "cuda"
    print(json.dumps({name: compile_step(path, shape, mesh, platform) for name, shape in SHAPES.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
