"""The gated feed-forward block, with its two input projections apart or in one tensor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear, apply_together
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.projection import Gate, activate, gated_mlp, project_gated
from realm_jax.sharding import constrain


class GatedMLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer, 2020)."""

    def __init__(self, weights: Weights, sizes: tuple[int, int], activation: Gate, *, bias: bool = False) -> None:
        """`sizes` is (hidden, intermediate)."""
        hidden, intermediate = sizes
        self.gate_proj = Linear(weights, "ffn_gate", (hidden, intermediate), bias=bias)
        self.up_proj = Linear(weights, "ffn_up", (hidden, intermediate), bias=bias)
        self.down_proj = Linear(weights, "ffn_down", (intermediate, hidden), bias=bias)
        self.activation: Gate = activation

    def __call__(self, norm: RMSNorm | None, residual: Residual, tap: Recorder) -> Float[Array, "tokens hidden"]:
        """The residual stream after the block, whose input is the norm of the stream before."""
        gate_up = (self.gate_proj.map, self.up_proj.map)
        options = {"norm": None if norm is None else norm.rms, "implementation": self.gate_proj.implementation}
        if not tap.wants("mlp.hidden", "mlp.out"):
            options |= {"scale": residual.scale, "post_norm": residual.post_rms}
            return gated_mlp(residual.stream, (*gate_up, self.down_proj.map), self.activation, **options)
        hidden = project_gated(residual.stream, gate_up, self.activation, **options)
        return residual.add_projection(self.down_proj, tap("mlp.hidden", hidden), tap, "mlp.out")


class FusedGatedMLP(nnx.Module):
    """GatedMLP whose gate and up projections are one tensor: the rows of the gate, then those of up."""

    def __init__(self, weights: Weights, sizes: tuple[int, int], activation: Gate) -> None:
        """`sizes` is (hidden, intermediate)."""
        hidden, intermediate = sizes
        self.gate_up_proj = Linear(weights, "ffn_up", (hidden, 2 * intermediate))
        self.down_proj = Linear(weights, "ffn_down", (intermediate, hidden))
        self.activation: Gate = activation

    def __call__(self, norm: RMSNorm | None, residual: Residual, tap: Recorder) -> Float[Array, "tokens hidden"]:
        """The residual stream after the block, whose input is the norm of the stream before."""
        # A device has rows of either half: they are put together before they are taken apart.
        fused = constrain(apply_together([self.gate_up_proj], residual.stream, norm)[0], "tokens", None)
        gate, up = jnp.split(fused, 2, axis=-1)
        hidden: jax.Array = tap("mlp.hidden", activate(self.activation, gate) * up)
        return residual.add_projection(self.down_proj, hidden, tap, "mlp.out")
