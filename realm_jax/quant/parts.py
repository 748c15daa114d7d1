"""Weights on a mesh: what each device holds of their stored form, and how a file's tensor gets there part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.quant.layouts import Layout
from realm_jax.sharding import Split

# The first index along each axis of a weight, and the one behind the last.
_Span = tuple[tuple[int, int], ...]


def stored_in_parts(layout: Layout, kind: GGMLType, shape: tuple[int, ...], counts: Sequence[int]) -> Any:
    """Shapes and dtypes of a weight `[*lead, rows, columns]` whose axes are cut into so many parts, packed one by one.

    Each array is as long as its parts together.
    """
    part = layout.stored(kind, tuple(size // count for size, count in zip(shape, counts, strict=True)))
    leaves, structure = jax.tree.flatten(part)
    whole = [
        jax.ShapeDtypeStruct(tuple(n * t for n, t in zip(leaf.shape, times, strict=True)), leaf.dtype)
        for leaf, times in zip(leaves, layout.spread(kind, counts, 1), strict=True)
    ]
    return jax.tree.unflatten(structure, whole)


def on_mesh(layout: Layout, kind: GGMLType, stored: Any, split: Split, mesh: Any) -> Any:
    """Stored arrays with the sharding that each has where the weight `[*lead, rows, columns]` is split like this."""
    leaves, structure = jax.tree.flatten(stored)
    placed = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        for leaf, axes in zip(leaves, layout.spread(kind, split, None), strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def place_parts(layout: Layout, raw: RawTensor, stored: Any, sharding: NamedSharding) -> Any:
    """A tensor in a layout that packs parts one by one, each device's from its part of the file.

    `stored` are its arrays as `on_mesh` describes them. A part that several devices hold is packed once, and one for
    devices of other processes not at all.
    """
    owners: dict[_Span, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(raw.shape).items():
        span = tuple(one.indices(size)[:2] for one, size in zip(index or (), raw.shape, strict=True))
        owners.setdefault(span, []).append(device)
    whole, structure = jax.tree.flatten(stored)
    pieces: list[list[jax.Array]] = [[] for _ in whole]
    for span, devices in owners.items():
        packed = layout.pack(_cut(raw, span), raw.ggml_type, tuple(stop - start for start, stop in span), None)
        for arrays, host in zip(pieces, jax.tree.leaves(packed), strict=True):
            arrays += [jax.device_put(host, device) for device in devices]
    made = [
        jax.make_array_from_single_device_arrays(array.shape, array.sharding, arrays)
        for array, arrays in zip(whole, pieces, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def _cut(raw: RawTensor, span: _Span) -> np.ndarray:
    """The bytes of a part of a tensor, whole blocks of its rows."""
    kind, (*lead, (first, last)) = raw.ggml_type, span
    blocks = slice(first // kind.block_size * kind.type_size, last // kind.block_size * kind.type_size)
    rows = raw.data.reshape(*raw.shape[:-1], -1)
    return np.ascontiguousarray(rows[(*(slice(*one) for one in lead), blocks)])
