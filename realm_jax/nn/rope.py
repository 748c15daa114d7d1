"""Rotary position embeddings: frequencies with their scalings."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from realm_jax.ops.rope import RopeStyle, RopeTable, rope_table


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


class Rope(nnx.Module):
    """The rotation of one RopeConfig."""

    def __init__(self, config: RopeConfig) -> None:
        self.frequencies = RopeFrequencies(jnp.asarray(config.frequencies()))
        self.attention_factor = config.attention_factor

    def __call__(self, positions: Int[Array, " tokens"], *, implementation: str | None = None) -> RopeTable:
        """The table for these positions."""
        frequencies = self.frequencies.get_value()
        return rope_table(positions, frequencies, self.attention_factor, implementation=implementation)
