"""Compiles a model's decode and prefill step for a target, from the shapes of its weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from aot_kernels import one_line
from aot_models import layers_that_fit, open_without_data
from aot_rows import Row

from realm_jax import models
from realm_jax.engine.batch import BatchShape
from realm_jax.plan.devices import Device
from realm_jax.plan.programs import Compiled, compile_step, device_mesh

BLOCKS, BLOCK = 65, 64
SHAPES = {
    "decode": BatchShape(tokens=4, sequences=4, pages=8, rows=4, groups=2),
    "prefill": BatchShape(tokens=256, sequences=1, pages=8, rows=1, groups=2),
}
MOST_BYTES = 1.15
"""Weights on the device, as a fraction of the file's."""


def step_rows(target: Device, name: str, folder: Path) -> Iterator[Row]:
    """A row for each step of a model on the target's kernels; its fallbacks are matrices without a kernel.

    Of a model that the target's memory does not hold, as many layers as fit; a tenth is left for all besides weights.
    """
    file = open_without_data(name, folder)
    layers = layers_that_fit(file, 0.9 * target.memory / MOST_BYTES)
    if layers is not None:
        file, name = open_without_data(name, folder, layers), f"{name}, {layers} layers"
    mesh = device_mesh(target)
    missing = models.fallbacks(file, target.backend)
    stored = sum(raw.nbytes for raw in file.tensors.values())
    for step, shape in SHAPES.items():
        row = {"target": target.name, "name": f"{name} {step} {shape.tokens} tokens", "fallbacks": len(missing)}
        try:
            model = models.build(file, dtype=jnp.bfloat16, implementation=target.backend, abstract=True)
            caches = [layer.array(BLOCKS, BLOCK, "bfloat16") for layer in model.cache_spec()]
            compiled = compile_step(model, shape, caches, mesh, target.platform)
        except Exception as error:  # whatever a compiler throws is the row's result
            yield Row(**row, failure=one_line(error))
            continue
        cache_bytes = bytes_of(caches)
        # A TPU pads the cache too, and what is donated is aliased whole.
        weights = compiled.argument_bytes - max(compiled.aliased_bytes, cache_bytes)
        yield Row(
            **row,
            seconds=compiled.seconds,
            bytes=compiled.argument_bytes,
            calls=compiled.kernels,
            failure=_failure(compiled, cache_bytes, weights / stored),
            note=f"weights {weights / stored:.2f} x the file's, "
            f"{compiled.temporary_bytes / 2**20:.0f} MiB of temporaries"
            + ("" if layers is None else f", as many layers as {target.memory / 1e9:.0f} GB hold"),
        )


def _failure(compiled: Compiled, cache_bytes: int, ratio: float) -> str:
    if compiled.aliased_bytes < cache_bytes:
        return "the cache is not updated in place"
    if ratio > MOST_BYTES:
        return f"weights take {ratio:.2f} x the file's bytes, at most {MOST_BYTES} are allowed"
    return "" if compiled.kernels else "the program holds no kernel"


def bytes_of(caches: Sequence[jax.ShapeDtypeStruct]) -> int:
    """The bytes of arrays of these shapes."""
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in caches)
