"""Sharding: the rules that split each array of a model over a mesh of devices by the roles of its axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "MESH_AXES",
    "RULES",
    "WEIGHT_AXES",
    "MeshConfig",
    "Split",
    "check_experts",
    "constrain",
    "current_mesh",
    "named_sharding",
    "parts",
    "place",
    "split_axes",
    "split_counts",
    "split_parts",
    "weight_split",
]

MESH_AXES = ("data", "tensor", "expert")

Split = tuple[str | tuple[str, ...] | None, ...]
"""For each axis of an array the mesh axis, or axes, that it is split over; None: every device has all of it."""

RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tokens": ("data",),
        # Devices that hold the same keys share the queries among them, whatever else the axis is for.
        "queries": ("data", "tensor", "expert"),
        "vocab": ("tensor",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "mlp": ("tensor",),
        # Whole experts lie on both axes where their number allows it: no sum inside an expert is ever split.
        "experts": ("expert", "tensor"),
        # The residual stream, and what only one expert or the router sees, is the same everywhere.
        "hidden": (),
        "expert_mlp": (),
        "router": (),
    }
)
"""The mesh axes that a logical axis may be split over, the first choice being all of them together."""

WEIGHT_AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "token_embd": ("vocab", "hidden"),
        "output": ("vocab", "hidden"),
        "attn_q": ("heads", "hidden"),
        "attn_k": ("kv_heads", "hidden"),
        "attn_v": ("kv_heads", "hidden"),
        "attn_qkv": ("heads", "hidden"),
        "attn_output": ("hidden", "heads"),
        "ffn_gate": ("mlp", "hidden"),
        "ffn_up": ("mlp", "hidden"),
        "ffn_down": ("hidden", "mlp"),
        "ffn_gate_inp": ("router", "hidden"),
        "ffn_gate_exps": ("experts", "expert_mlp", "hidden"),
        "ffn_up_exps": ("experts", "expert_mlp", "hidden"),
        "ffn_down_exps": ("experts", "hidden", "expert_mlp"),
    }
)
"""The logical axes of each matrix of a file by its name there, without the layer: what it makes, what it sums over.

Vectors - norms, biases, sinks - are whole on every device: they are small, and a part of one would be of little use.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices share the work, and in which way; their product is the number of devices.

    Attributes:
        data: parts of a step's tokens, each computed with the whole model.
        tensor: parts of every matrix, of the heads and of their KV cache, and of the experts.
        expert: parts of the experts of a mixture.
    """

    data: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in MESH_AXES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 part, got {getattr(self, name)}")

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The first devices of JAX, of all processes, as a mesh; ValueError where there are too few."""
        shape = tuple(getattr(self, name) for name in MESH_AXES)
        present = jax.devices() if devices is None else devices
        if math.prod(shape) > len(present):
            raise ValueError(f"the mesh {self} needs {math.prod(shape)} devices, JAX has {len(present)}")
        chosen = np.array(present[: math.prod(shape)]).reshape(shape)
        return Mesh(chosen, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def split_axes(logical: Sequence[str | None], units: Sequence[int], sizes: Mapping[str, int]) -> Split:
    """What each axis is split over: the mesh axes of its rule if their sizes divide it and no earlier axis has them.

    `units[i]` is the number of pieces of axis i that must stay whole, such as the blocks of a row; `sizes` are those
    of the mesh axes. An axis with several mesh axes takes all of them, else the first that divides it.
    """
    used: set[str] = set()
    found: list[str | tuple[str, ...] | None] = []
    for name, count in zip(logical, units, strict=True):
        free = tuple(axis for axis in RULES[name] if sizes[axis] > 1 and axis not in used) if name else ()
        choices = [free, *((axis,) for axis in free)]
        best = next((c for c in choices if c and count % math.prod(sizes[axis] for axis in c) == 0), ())
        used.update(best)
        found.append(best if len(best) > 1 else (best[0] if best else None))
    return tuple(found)


def split_counts(split: Split, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """How many parts each axis of an array has that is split like this over a mesh of these sizes."""
    names = ((axes,) if isinstance(axes, str) else axes or () for axes in split)
    return tuple(math.prod(sizes[name] for name in axes) for axes in names)


def split_parts(split: Split, sizes: Mapping[str, int]) -> int:
    """How many parts there are of all axes together."""
    return math.prod(split_counts(split, sizes))


def check_experts(names: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Raise ValueError where a mesh splits experts and none of a model's tensors holds any."""
    if sizes["expert"] > 1 and not any("_exps." in name for name in names):
        raise ValueError(f"expert must be 1 for a model without experts, got {sizes['expert']}; use tensor or data")


def weight_split(name: str, units: Sequence[int], sizes: Mapping[str, int]) -> Split:
    """What the axes of the tensor `name` of a file, `[*lead, rows, columns]`, are split over; see `split_axes`.

    Where a matrix cannot be cut along what it sums over, because its blocks do not divide or its layout does not
    allow it, its rows are split instead. Raises ValueError for a matrix without a row in `WEIGHT_AXES`, and for experts
    that the mesh does not divide.
    """
    base, _, kind = name.split(".", 2)[-1].rpartition(".") if name.startswith("blk.") else name.rpartition(".")
    if kind != "weight" or sum(count > 1 for count in units) < 2 and base not in WEIGHT_AXES:
        return (None,) * len(units)
    if base not in WEIGHT_AXES:
        raise ValueError(f"every matrix needs logical axes to be split over a mesh, {name} has none in WEIGHT_AXES")
    logical = WEIGHT_AXES[base]
    if logical[0] == "experts" and units[0] % sizes["expert"]:
        raise ValueError(f"expert must divide the {units[0]} experts of {name}, got {sizes['expert']}")
    split = split_axes(logical, units, sizes)
    if any(split) or not RULES[logical[-1]]:
        return split
    return split_axes((*logical[:-2], logical[-1], None), units, sizes)


def named_sharding(mesh: Mesh, split: Split = ()) -> NamedSharding:
    """The sharding on a mesh; without a split every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec(*split))


def place(host: Any, sharding: NamedSharding) -> jax.Array:
    """An array of the host, the same in every process, with each device given its part alone."""
    host = np.asarray(host)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def current_mesh() -> Mapping[str, int] | None:
    """The sizes of the mesh that is being traced for; None without one, and inside of what each device runs itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.size == 1:
        return None
    return mesh.shape


def parts(axes: str | tuple[str, ...] | None) -> int:
    """How many parts an axis has that is split over these axes of the mesh that is being traced for."""
    return split_parts((axes,), jax.sharding.get_abstract_mesh().shape)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """The same array, split by the roles of its axes where something is traced for a mesh; otherwise x itself."""
    sizes = current_mesh()
    if sizes is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*split_axes(logical, x.shape, sizes)))
