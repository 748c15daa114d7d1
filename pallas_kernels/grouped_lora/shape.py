"""The sizes of a call of grouped_lora, read from arrays that have to belong together."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """`x[tokens, columns]`, `A[adapters, rank, columns]`, `B[adapters, outputs, rank]`; `itemsize` of A and B."""

    tokens: int
    adapters: int
    rank: int
    columns: int
    outputs: int
    itemsize: int


def shape_of(x: jax.Array, a: jax.Array, b: jax.Array, adapter_ids: jax.Array, scale: jax.Array) -> Shape:
    """The sizes of `grouped_lora(x, a, b, adapter_ids, scale)`.

    Raises:
        ValueError: shapes do not belong together, or a type is not among those that are computed with.
    """
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floats [tokens, columns], got {x.dtype} {x.shape}")
    tokens, columns = x.shape
    if a.ndim != 3 or a.shape[2] != columns:
        raise ValueError(f"a must be [adapters, rank, {columns}] for x of {columns} columns, got {a.shape}")
    adapters, rank, _ = a.shape
    if b.ndim != 3 or (b.shape[0], b.shape[2]) != (adapters, rank):
        raise ValueError(f"b must be [{adapters}, outputs, {rank}] for a of {a.shape}, got {b.shape}; swap its axes?")
    if a.dtype != b.dtype or a.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"a and b must both be bfloat16 or both float32, got {a.dtype} and {b.dtype}")
    if adapter_ids.shape != (tokens,) or adapter_ids.dtype != jnp.int32:
        raise ValueError(
            f"adapter_ids must be int32[{tokens}], one a token, got {adapter_ids.dtype} {adapter_ids.shape}"
        )
    if scale.shape != (adapters,) or scale.dtype != jnp.float32:
        raise ValueError(f"scale must be float32[{adapters}], one an adapter, got {scale.dtype} {scale.shape}")
    return Shape(
        tokens=tokens,
        adapters=adapters,
        rank=rank,
        columns=columns,
        outputs=b.shape[1],
        itemsize=a.dtype.itemsize,
    )
