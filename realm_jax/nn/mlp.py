"""The gated feed-forward block, with its two input projections apart or in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights

gelu_tanh: Callable[[jax.Array], jax.Array] = partial(jax.nn.gelu, approximate=True)


class GatedMLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer, 2020)."""

    def __init__(
        self,
        weights: Weights,
        sizes: tuple[int, int],
        activation: Callable[[jax.Array], jax.Array],
        *,
        bias: bool = False,
    ) -> None:
        """`sizes` is (hidden, intermediate)."""
        hidden, intermediate = sizes
        self.gate_proj = Linear(weights, "ffn_gate", (hidden, intermediate), bias=bias)
        self.up_proj = Linear(weights, "ffn_up", (hidden, intermediate), bias=bias)
        self.down_proj = Linear(weights, "ffn_down", (intermediate, hidden), bias=bias)
        self.activation = activation

    def __call__(self, x: Float[Array, "tokens hidden"], tap: Recorder) -> Float[Array, "tokens hidden"]:
        """The block's output before the residual."""
        hidden = tap("mlp.hidden", self.activation(self.gate_proj(x)) * self.up_proj(x))
        return tap("mlp.out", self.down_proj(hidden))


class FusedGatedMLP(nnx.Module):
    """GatedMLP whose gate and up projections are one tensor: the rows of the gate, then those of up."""

    def __init__(self, weights: Weights, sizes: tuple[int, int], activation: Callable[[jax.Array], jax.Array]) -> None:
        """`sizes` is (hidden, intermediate)."""
        hidden, intermediate = sizes
        self.gate_up_proj = Linear(weights, "ffn_up", (hidden, 2 * intermediate))
        self.down_proj = Linear(weights, "ffn_down", (intermediate, hidden))
        self.activation = activation

    def __call__(self, x: Float[Array, "tokens hidden"], tap: Recorder) -> Float[Array, "tokens hidden"]:
        """The block's output before the residual."""
        gate, up = jnp.split(self.gate_up_proj(x), 2, axis=-1)
        hidden = tap("mlp.hidden", self.activation(gate) * up)
        return tap("mlp.out", self.down_proj(hidden))
