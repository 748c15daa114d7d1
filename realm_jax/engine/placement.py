"""Placement: where a runner's weights, caches and everything else lie, and how its programs are lowered for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from realm_jax.sharding import named_sharding, place

Role = Literal["weights", "cache", "same"]
"""What an argument or a result of a program is: the weights, the caches, or something that is the same everywhere."""

Given = tuple[Role, Any]
"""An argument of a program with its role: an array, its shape, or a tree of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """One device (`mesh` None), or a mesh over which weights and caches are split.

    `cache`: the sharding of each layer's cache on the mesh, or of each of its arrays.
    """

    mesh: Mesh | None
    cache: Sequence[Any]

    def weights(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of a model, those that are not yet on the mesh put whole on each of its devices."""
        if self.mesh is None:
            return list(leaves)
        same, devices = named_sharding(self.mesh), set(self.mesh.devices.flat)
        return [leaf if leaf.sharding.device_set == devices else place(leaf, same) for leaf in leaves]

    def zeros(self, arrays: Sequence[Any]) -> list[Any]:
        """Caches of these shapes, one a layer, on the mesh."""
        return jax.tree.map(lambda a, s: jnp.zeros(a.shape, a.dtype, device=s), list(arrays), list(self.cache))

    def lower(self, function: Callable[..., Any], arguments: Sequence[Given], results: Sequence[Role]) -> Any:
        """Lower a function of these arguments, arrays or their shapes; caches are donated where that is possible.

        A single result is returned as it is, several as a tuple.
        """
        roles, values = [role for role, _ in arguments], [value for _, value in arguments]
        donated = donatable([i for i, role in enumerate(roles) if role == "cache"])
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donated).lower(*values)
        given = tuple(self._shardings(role, value) for role, value in arguments)
        made = tuple(self._shardings(role, None) for role in results)
        options = {"in_shardings": given, "out_shardings": made[0] if len(made) == 1 else made}
        with jax.set_mesh(self.mesh):
            return jax.jit(function, donate_argnums=donated, **options).lower(*values)

    def _shardings(self, role: Role, value: Any) -> Any:
        assert self.mesh is not None
        if role == "weights":
            return [leaf.sharding for leaf in value]
        return list(self.cache) if role == "cache" else named_sharding(self.mesh)


def donatable(arguments: Sequence[int]) -> tuple[int, ...]:
    """The arguments of a program to donate: none on Metal, for which JAX has no donation and would warn of each."""
    return () if jax.default_backend() == "mps" else tuple(arguments)


def on_this_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is here, for other threads: `jax.default_device` sets a device for one thread alone."""
    config: Any = jax.config  # makes its options' names when it is imported, which no checker sees
    device = config.jax_default_device

    def call(*operands: Any) -> Any:
        with jax.default_device(device):
            return function(*operands)

    return call
