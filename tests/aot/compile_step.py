"""Compiles a file's decode and prefill step for an accelerator that is not here, and prints what it takes as JSON.

usage: python compile_step.py TARGET MODEL.gguf IMPLEMENTATION    (a process per target: libraries keep one for good)
"""

import json
import sys
from typing import Any

from aot_targets import prepare

from realm_jax.plan.devices import DEVICES


def main(target_name: str, path: str, implementation: str) -> None:
    """Compile every step and print the results."""
    target = DEVICES[target_name]
    prepare(target)
    import jax
    import jax.numpy as jnp
    from aot_steps import BLOCK, BLOCKS, SHAPES, bytes_of
    from flax import nnx

    from realm_jax import gguf, models
    from realm_jax.plan.programs import compile_step, device_mesh

    model = models.build(gguf.open(path), dtype=jnp.bfloat16, implementation=implementation, abstract=True)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.split(model)[1]))
    mesh, steps = device_mesh(target), dict[str, Any]()
    for name, shape in SHAPES.items():
        caches = [layer.array(BLOCKS, BLOCK, "bfloat16") for layer in model.cache_spec()]
        compiled = compile_step(model, shape, caches, mesh, target.platform)
        steps[name] = {
            "argument_bytes": compiled.argument_bytes,
            "aliased_bytes": compiled.aliased_bytes,
            "kernels": compiled.kernels,
            "weight_bytes": weights,
            "cache_bytes": bytes_of(caches),
        }
    print(json.dumps(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
