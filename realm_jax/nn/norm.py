"""Root-mean-square normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.weights import Weights


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * w` over the last axis, in float32 (Zhang and Sennrich, 2019).

    GGUF files store the factor to multiply with, also for families whose checkpoints store `w - 1`.
    """

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self.weight = weights.vector(f"{name}.weight", (size,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise; the result has `x.dtype`."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        factor = self.weight.get_value().reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * scale * factor).astype(x.dtype)
