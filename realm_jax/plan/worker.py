"""Compiles a model's steps for a target in a process of its own, and prints what they take, a line of JSON each.

usage: python -m realm_jax.plan.worker < request.json

Plug-ins keep the first target for good, and some errors of compilers end the process. The environment must be the
device's. The steps of a large model are compiled with a layer of each form first: whole ones follow while time is left.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from realm_jax import gguf, models
from realm_jax.engine.parts import form_of
from realm_jax.gguf import GGUFFile
from realm_jax.models import CausalLM
from realm_jax.ops.backends import layout_name
from realm_jax.plan.programs import Compiled, compile_step, device_mesh
from realm_jax.plan.request import PlanRequest
from realm_jax.plan.roofline import Work
from realm_jax.plan.sizes import CacheLayer, cache_layers, weight_sizes
from realm_jax.plan.traffic import Traffic, bytes_moved

_FEW_LAYERS = 8  # up to which whole steps are compiled at once


def main() -> None:
    """Read the request, compile, print."""
    given = json.load(sys.stdin)
    request, deadline = PlanRequest.from_json(given["request"]), time.monotonic() + given["seconds"]
    for row in compile_rows(given["path"], request, deadline):
        print(json.dumps(row), flush=True)


def compile_rows(path: str, request: PlanRequest, deadline: float) -> Iterator[dict[str, Any]]:
    """A row for each step that was compiled; a later row of a step takes the place of an earlier one."""
    steps = _Steps(path, request)
    every, some = range(len(steps.layers)), steps.first_of_each_form()
    expected: dict[str, float] = {}
    if len(every) > max(_FEW_LAYERS, len(some)):
        for name in steps.shapes:
            outside, inside = steps.compile(name, ()), steps.compile(name, some)
            expected[name] = outside.seconds + (inside.seconds - outside.seconds) * len(every) / len(some)
            fixed = {"argument_bytes": outside.argument_bytes, "bytes_moved": steps.moved(name, outside).bytes}
            yield {**_row(steps, name, inside, some), **{f"outside_{key}": count for key, count in fixed.items()}}
    for name in steps.shapes:
        if time.monotonic() + expected.get(name, 0.0) < deadline:
            yield _row(steps, name, steps.compile(name, every), every)


class _Steps:
    """A model without its weights, and what its steps with some of its layers compile to."""

    def __init__(self, path: str, request: PlanRequest) -> None:
        self._device = request.device_target.device
        self._mesh = device_mesh(self._device, request.chips)
        file = gguf.open(path, header_only=True)
        self._model = _abstract_model(file, request, self._mesh)
        self.layers = list(self._model.layers)
        spec = self._model.cache_spec()
        limits: Any = {"context": request.context, "batch": request.batch, "dtype": request.kv_cache_dtype}
        layers = cache_layers(spec, request.mesh, **limits)
        self._caches = [layer.array for layer in layers]
        self.shapes = request.shapes(1 + max(layer.group for layer in spec))
        decode = [layer.share_read(layer.sequences_each(request.batch), request.context, 1) for layer in layers]
        prefill = [layer.share_read(1, request.context, request.prefill_tokens) for layer in layers]
        self._seen = {
            name: _by_shape(layers, shares, self._mesh) for name, shares in (("decode", decode), ("prefill", prefill))
        }
        weights = weight_sizes(file, layout_name(request.implementation), request.mesh)
        work = Work.of(self._model, weights, layers)
        tokens = {"decode": request.batch, "prefill": request.prefill_tokens}
        self._experts_read = {name: work.experts_read(count) for name, count in tokens.items()}

    def first_of_each_form(self) -> list[int]:
        """The first layers among those that compute the same function of weights of the same types and shapes."""
        forms: dict[Any, int] = {}
        for i, layer in enumerate(self.layers):
            forms.setdefault(form_of(layer), i)
        return list(forms.values())

    def compile(self, step: str, chosen: Sequence[int]) -> Compiled:
        """A step of the model with these of its layers alone."""
        self._model.layers = nnx.List([self.layers[i] for i in chosen])
        caches = [self._caches[i] for i in chosen]
        return compile_step(self._model, self.shapes[step], caches, self._mesh, self._device.platform)

    def moved(self, step: str, compiled: Compiled) -> Traffic:
        """What the program of a step moves."""
        return bytes_moved(compiled.text, self._seen[step], experts_read=self._experts_read[step])


def _by_shape(layers: Sequence[CacheLayer], shares: Sequence[float], mesh: Mesh) -> dict[tuple[int, ...], float]:
    """The share of its cache that each layer reads, by the shapes of a device's arrays; of those alike the largest."""
    found: dict[tuple[int, ...], float] = {}
    for layer, share in zip(layers, shares, strict=True):
        shardings = jax.tree.leaves(layer.spec.shardings(layer.array, mesh))
        for array, sharding in zip(jax.tree.leaves(layer.array), shardings, strict=True):
            shape = sharding.shard_shape(array.shape)
            found[shape] = max(share, found.get(shape, 0.0))
    return found


def _abstract_model(file: GGUFFile, request: PlanRequest, mesh: Mesh) -> CausalLM:
    config = models.config_of(file, max_model_len=request.context)
    return models.build(
        file,
        config=config,
        dtype=jnp.bfloat16,
        implementation=request.implementation,
        device=mesh if request.chips > 1 else None,
        abstract=True,
    )


def _row(steps: _Steps, name: str, compiled: Compiled, layers: Sequence[int]) -> dict[str, Any]:
    moved = steps.moved(name, compiled)
    return {
        "step": name,
        "layers": list(layers),
        "seconds": compiled.seconds,
        "argument_bytes": compiled.argument_bytes,
        "aliased_bytes": compiled.aliased_bytes,
        "output_bytes": compiled.output_bytes,
        "temporary_bytes": compiled.temporary_bytes,
        "custom_calls": dict(compiled.calls),
        "kernels": compiled.kernels,
        "bytes_moved": moved.bytes,
        "bytes_moved_by": {kind: round(count) for kind, count in moved.by_kind.items()},
        "unknown_loops": moved.unknown_loops,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
