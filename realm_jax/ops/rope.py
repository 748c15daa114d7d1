"""Rotary position embeddings: the table of a step, and the rotation of heads by it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import cpu_kernels
from realm_jax.ops.backends import is_native

RopeStyle = Literal["interleaved", "half"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RopeTable:
    """cos and sin `[tokens, dim // 2]` in float32, computed once a step and shared by the layers."""

    cos: Any
    sin: Any


def rope_table(
    positions: Int[Array, " tokens"],
    frequencies: Float[Array, " half"],
    factor: float = 1.0,
    *,
    implementation: str | None = None,
) -> RopeTable:
    """`factor * cos(p f)` and `factor * sin(p f)` for positions p and frequencies f in radians per position."""
    if is_native(implementation):
        return RopeTable(*cpu_kernels.rope_table(positions, frequencies, factor))
    angles = positions[:, None].astype(jnp.float32) * frequencies[None, :]
    return RopeTable(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def apply_rope(
    x: Float[Array, "tokens heads head_dim"], table: RopeTable, style: RopeStyle
) -> Float[Array, "tokens heads head_dim"]:
    """Rotate the first `2 * table.cos.shape[-1]` channels of each head; the rest pass through."""
    half = table.cos.shape[-1]
    cos, sin = table.cos[:, None, :], table.sin[:, None, :]
    rotated, rest = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    if style == "interleaved":
        pairs = rotated.reshape(*rotated.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(rotated.shape)
    else:
        a, b = rotated[..., :half], rotated[..., half:]
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), rest], axis=-1) if rest.shape[-1] else rotated.astype(x.dtype)
