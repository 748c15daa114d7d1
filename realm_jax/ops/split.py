"""Products with weights that are split over a mesh: each device multiplies its own part of them, inside shard_map."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cpu_kernels import Rms
from realm_jax.quant import QTensor, take_rows
from realm_jax.sharding import constrain, current_mesh, parts, split_axes

__all__ = ["LinearMap", "apply_parts", "rows_axis", "take_rows_of_parts", "tokens_axis"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """`y = x W^T + b` with `W[rows, columns]` in its stored form; `b` in float32, or None."""

    weight: QTensor
    bias: Any = None


# What one device runs: products of its tokens with its part of each map.
Function = Callable[..., tuple[jax.Array, ...]]


def tokens_axis(x: jax.Array) -> Any:
    """The mesh axis that the tokens of `x[tokens, ...]` are split over; None where they do not divide."""
    sizes = current_mesh()
    return None if sizes is None or x.ndim != 2 else split_axes(("tokens",), x.shape[:1], sizes)[0]


def rows_axis(one: LinearMap) -> Any:
    """The mesh axis that the rows of a map are split over."""
    return one.weight.split[0] if one.weight.split else None


def apply_parts(
    function: Function,
    x: Float[Array, "*tokens columns"],
    maps: Sequence[LinearMap],
    norm: Rms | None = None,
    *,
    residual: Float[Array, "*tokens rows"] | None = None,
    outputs: int | None = None,
) -> tuple[jax.Array, ...]:
    """`function(x, maps, norm[, residual])` by parts, `outputs` products of it, by default one for each map.

    A map whose rows are split gives the columns of its product that its rows make; the others' are elsewhere, and
    nothing travels. One that is split along what it sums over takes the columns of x that it needs; the partial
    products, in `x.dtype`, are summed over the devices once, in float32, and the bias is added to the sum.
    """
    summed = [one.weight.split[1] if one.weight.split else None for one in maps]
    if any(summed) and norm is not None:
        x, norm = norm(x), None
    if any(axis != summed[0] for axis in summed):
        return tuple(y for one in maps for y in apply_parts(function, x, [one], norm))
    tokens, lead = tokens_axis(x), (None,) * (x.ndim - 2)
    rows = [rows_axis(one) for one in maps]
    kept = [one if axis is None else LinearMap(weight=one.weight) for one, axis in zip(maps, summed, strict=True)]
    given: list[tuple[Any, Any]] = [(x, PartitionSpec(*lead, tokens, summed[0]))]
    for one, axis in zip(kept, rows, strict=True):
        given.append((one.weight.data, one.weight.specs))
        given += [] if one.bias is None else [(one.bias, PartitionSpec(axis))]
    given += [] if norm is None else [(norm.weight, PartitionSpec())]
    given += [] if residual is None else [(residual, PartitionSpec(*lead, tokens, rows[0]))]

    def local(x: jax.Array, *arrays: Any) -> tuple[jax.Array, ...]:
        left = iter(arrays)
        own = [
            LinearMap(weight=one.weight.part(next(left)), bias=None if one.bias is None else next(left)) for one in kept
        ]
        own_norm = None if norm is None else dataclasses.replace(norm, weight=next(left))
        ys = function(x, own, own_norm, *left)
        if not any(summed):
            return ys
        return tuple(jax.lax.psum(y.astype(jnp.float32), summed[0]).astype(y.dtype) for y in ys)

    specs = tuple(PartitionSpec(*lead, tokens, axis) for axis in rows[:outputs])
    mapped = jax.shard_map(local, in_specs=tuple(s for _, s in given), out_specs=specs, check_vma=False)
    ys = mapped(*(array for array, _ in given))
    biases = [one.bias if axis is not None else None for one, axis in zip(maps, summed, strict=True)]
    return tuple(y if b is None else y + b.astype(y.dtype)[None] for y, b in zip(ys, biases, strict=False))


def take_rows_of_parts(w: QTensor, ids: Int[Array, " tokens"], dtype: Any) -> Float[Array, "tokens columns"]:
    """`take_rows(w, ids)` where each device looks up the rows that it has; only those of the tokens travel."""
    sizes = current_mesh()
    if sizes is None:
        return take_rows(w, ids, dtype)
    axis = w.split[0] if w.split else None
    tokens = split_axes(("tokens",), ids.shape, sizes)[0]

    def local(data: Any, ids: jax.Array) -> jax.Array:
        part = w.part(data)
        if axis is None:
            return take_rows(part, ids, dtype)
        own = ids - jax.lax.axis_index(axis) * (w.shape[0] // parts(axis))
        rows = take_rows(part, own, dtype)
        # All but one of the devices add zero bits: a sum of integers keeps every value as it is.
        bits = jax.lax.bitcast_convert_type(rows, f"uint{8 * rows.dtype.itemsize}").astype(jnp.uint32)
        bits = jnp.where(((own >= 0) & (own < part.shape[0]))[:, None], bits, 0)
        return jax.lax.bitcast_convert_type(
            jax.lax.psum(bits, axis).astype(f"uint{8 * rows.dtype.itemsize}"), rows.dtype
        )

    specs = (w.specs, PartitionSpec(tokens))
    mapped = jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(tokens, None), check_vma=False)
    return mapped(w.data, constrain(ids, None))  # what else is done with the ids is not to follow their split
