"""Root-mean-square normalisation."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.weights import Weights
from realm_jax.ops.norm import normalise
from realm_jax.ops.projection import Rms


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * w` over the last axis, in float32 (Zhang and Sennrich, 2019).

    GGUF files store the factor to multiply with, also for families whose checkpoints store `w - 1`.
    """

    def __init__(self, weights: Weights, name: str, size: int, eps: float) -> None:
        self.weight = weights.vector(f"{name}.weight", (size,))
        self.eps = eps
        self.implementation = weights.implementation

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise; the result has `x.dtype`."""
        return normalise(self.rms, x, implementation=self.implementation)

    @property
    def rms(self) -> Rms:
        """The norm as operations take it that normalise on the way."""
        return Rms(weight=self.weight.get_value(), eps=self.eps)
