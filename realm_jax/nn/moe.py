"""A mixture of experts: a router sends each token through a few of many feed-forward blocks."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear, apply_together
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.experts import Experts, GatedActivation, mix_experts, route, swiglu
from realm_jax.ops.split import LinearMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Shapes and options of one layer's experts.

    A token goes to the `experts_per_token` experts of the largest router logits. Their weights are the softmax over
    those logits where `normalise`, over all logits otherwise, times `weights_scale`. `bias`: router and experts.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    normalise: bool = True
    weights_scale: float = 1.0
    bias: bool = False
    activation: GatedActivation = swiglu

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"experts_per_token must be 1 to {self.num_experts}, got {self.experts_per_token}")


class ExpertLinear(nnx.Module):
    """`y = x W[e]^T + b[e]` for each expert e, with `W[experts, out, in]` in its stored form."""

    def __init__(
        self, weights: Weights, name: str, experts: int, features: tuple[int, int], *, bias: bool = False
    ) -> None:
        """Take `name.weight` (and `name.bias`); `features` is (in, out)."""
        inner, outer = features
        self.weight = weights.tensor(f"{name}.weight", (experts, outer, inner))
        self.bias = weights.vector(f"{name}.bias", (experts, outer)) if bias else None
        self.implementation = weights.implementation

    @property
    def maps(self) -> LinearMap:
        """All experts' maps as operations take them."""
        return LinearMap(weight=self.weight.get_value(), bias=None if self.bias is None else self.bias.get_value())


class MixtureOfExperts(nnx.Module):
    """`sum_e weight_e(x) down_e(activation(gate_e(x), up_e(x)))` (Shazeer et al., 2017; arXiv:2401.04088).

    Activation points: `mlp.router_logits` and `mlp.router_weights`, `[tokens, experts]`, the latter zero where an
    expert is not chosen; `mlp.out`.
    """

    def __init__(self, weights: Weights, config: ExpertsConfig) -> None:
        self.config = config
        hidden, inner, count, bias = config.hidden_size, config.intermediate_size, config.num_experts, config.bias
        self.router = Linear(weights, "ffn_gate_inp", (hidden, count), bias=bias)
        self.gate_proj = ExpertLinear(weights, "ffn_gate_exps", count, (hidden, inner), bias=bias)
        self.up_proj = ExpertLinear(weights, "ffn_up_exps", count, (hidden, inner), bias=bias)
        self.down_proj = ExpertLinear(weights, "ffn_down_exps", count, (inner, hidden), bias=bias)

    def __call__(self, norm: RMSNorm | None, residual: Residual, tap: Recorder) -> Float[Array, "tokens hidden"]:
        """The residual stream after the block, whose input is the norm of the stream before."""
        x = residual.stream
        config, implementation = self.config, self.gate_proj.implementation
        # Routing is a choice: in a narrow type, near ties would fall otherwise.
        (logits,) = apply_together([self.router], x.astype(jnp.float32), norm)
        logits = tap("mlp.router_logits", logits)
        weights = route(logits, config.experts_per_token, config.normalise, config.weights_scale, implementation)
        weights = tap("mlp.router_weights", weights)
        # An edit may send a token to more experts than the router does.
        most = config.num_experts if tap.edits("mlp.router_weights") else config.experts_per_token
        options = {"norm": None if norm is None else norm.rms, "implementation": implementation}
        mixed = mix_experts(x, weights, self.experts, most=most, **options)
        return residual.add(tap("mlp.out", mixed))

    @property
    def experts(self) -> Experts:
        """The experts as operations take them."""
        gate, up, down = self.gate_proj.maps, self.up_proj.maps, self.down_proj.maps
        return Experts(gate=gate, up=up, down=down, activation=self.config.activation)
