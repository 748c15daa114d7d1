"""Rotary position embeddings: frequencies with their scalings, and the rotation itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

RopeStyle = Literal["interleaved", "half"]


class RopeFrequencies(nnx.Variable):
    """Angular frequencies in radians per position; derived from metadata, not trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN (Peng et al., 2023): slow frequencies are interpolated, fast ones kept, with a linear ramp between."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    extrapolation: float = 1.0

    def ramp(self, dim: int, base: float) -> np.ndarray:
        """How far each of `dim // 2` frequencies is kept (1) rather than interpolated (0)."""

        def dimension(rotations: float) -> float:
            return dim * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(dimension(self.beta_fast)), 0)
        high = min(math.ceil(dimension(self.beta_slow)), dim - 1)
        ramp = (np.arange(dim // 2) - low) / max(high - low, 0.001)
        return (1 - np.clip(ramp, 0, 1)) * self.extrapolation


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Everything that fixes the rotation of `dim` leading channels of each head.

    `linear_factor` divides all frequencies (position interpolation), `factors` divides each one (Llama 3, LongRoPE),
    `yarn` blends; `attention_factor` multiplies cos and sin. `style` says which channels pair up: neighbours
    ("interleaved") or channel i with i + dim/2 ("half").
    """

    dim: int
    base: float = 10000.0
    style: RopeStyle = "half"
    linear_factor: float = 1.0
    factors: tuple[float, ...] | None = None
    yarn: Yarn | None = None
    attention_factor: float = 1.0

    def frequencies(self) -> np.ndarray:
        """`float32[dim // 2]` in radians per position."""
        plain = self.base ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        if self.factors is not None:
            plain = plain / np.asarray(self.factors)
        if self.yarn is None:
            return (plain / self.linear_factor).astype(np.float32)
        keep = self.yarn.ramp(self.dim, self.base)
        return (plain / self.yarn.factor * (1 - keep) + plain * keep).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RopeTable:
    """cos and sin `[tokens, dim // 2]` in float32, computed once a step and shared by the layers."""

    cos: Any
    sin: Any


class Rope(nnx.Module):
    """The rotation of one RopeConfig."""

    def __init__(self, config: RopeConfig) -> None:
        self.frequencies = RopeFrequencies(jnp.asarray(config.frequencies()))
        self.attention_factor = config.attention_factor

    def __call__(self, positions: Int[Array, " tokens"]) -> RopeTable:
        """The table for these positions."""
        angles = positions[:, None].astype(jnp.float32) * self.frequencies.get_value()[None, :]
        return RopeTable(jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor)


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
