"""A mixture of experts: a router sends each token through a few of many feed-forward blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from realm_jax.nn.linear import Linear
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.residual import Residual
from realm_jax.nn.taps import Recorder
from realm_jax.nn.weights import Weights
from realm_jax.ops.matmul import quantized_matmul
from realm_jax.ops.split import tokens_axis
from realm_jax.sharding import current_mesh

GatedActivation = Callable[[jax.Array, jax.Array], jax.Array]


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """`silu(gate) * up`."""
    return jax.nn.silu(gate) * up


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClampedSwiGLU:
    """`g sigmoid(alpha g) (u + 1)` with g = min(gate, limit) and u = clip(up, -limit, limit), as in gpt-oss."""

    alpha: float
    limit: float

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """Combine the two projections."""
        gate = jnp.minimum(gate, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (jnp.clip(up, -self.limit, self.limit) + 1)


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
    """`y = x W[e]^T + b[e]` for one expert e at a time, with `W[experts, out, in]` in its stored form."""

    def __init__(
        self, weights: Weights, name: str, experts: int, features: tuple[int, int], *, bias: bool = False
    ) -> None:
        """Take `name.weight` (and `name.bias`); `features` is (in, out)."""
        inner, outer = features
        self.weight = weights.tensor(f"{name}.weight", (experts, outer, inner))
        self.bias = weights.vector(f"{name}.bias", (experts, outer)) if bias else None
        self.implementation = weights.implementation

    def __call__(self, x: Float[Array, "tokens inner"], expert: Int[Array, ""]) -> Float[Array, "tokens outer"]:
        """Apply one expert's map; only its own weights are read and decoded."""
        stored = self.weight.get_value()
        own = stored.with_data(
            jax.tree.map(lambda part: jax.lax.dynamic_index_in_dim(part, expert, keepdims=False), stored.data)
        )
        y = quantized_matmul(x, own, implementation=self.implementation)
        if self.bias is None:
            return y
        return y + jax.lax.dynamic_slice_in_dim(self.bias.get_value(), expert, 1).astype(y.dtype)


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

    def __call__(
        self, x: Float[Array, "tokens hidden"], norm: RMSNorm | None, residual: Residual, tap: Recorder
    ) -> Float[Array, "tokens hidden"]:
        """The residual stream after the block, whose input is `norm(x)`."""
        x = x if norm is None else norm(x)
        # Routing is a choice: in a narrow type, near ties would fall otherwise.
        logits = tap("mlp.router_logits", self.router(x.astype(jnp.float32)))
        return residual.add(tap("mlp.out", self._mix(x, tap("mlp.router_weights", self._route(logits)))))

    def _route(self, logits: Float[Array, "tokens experts"]) -> Float[Array, "tokens experts"]:
        chosen, experts = jax.lax.top_k(logits, self.config.experts_per_token)
        normaliser = jax.nn.logsumexp(chosen if self.config.normalise else logits, axis=-1, keepdims=True)
        weights = jnp.exp(chosen - normaliser) * self.config.weights_scale
        return jnp.put_along_axis(jnp.zeros_like(logits), experts, weights, axis=-1, inplace=False)

    def _mix(
        self, x: Float[Array, "tokens hidden"], weights: Float[Array, "tokens experts"]
    ) -> Float[Array, "tokens hidden"]:
        """The experts' weighted sum; each device adds up its own, and the sums are added over the devices."""
        split = self.gate_proj.weight.get_value().split
        tokens = tokens_axis(x)
        if current_mesh() is None:
            return self._sum(x, weights, (self.gate_proj, self.up_proj, self.down_proj)).astype(x.dtype)
        graphdef, state = nnx.split(nnx.List([self.gate_proj, self.up_proj, self.down_proj]))
        axes = split[0] if split else None

        def local(state: Any, x: jax.Array, weights: jax.Array) -> jax.Array:
            gate, up, down = nnx.merge(graphdef, state)
            total = self._sum(x, weights, (gate, up, down))
            return (total if axes is None else jax.lax.psum(total, axes)).astype(x.dtype)

        spread = PartitionSpec(axes), PartitionSpec(tokens, None), PartitionSpec(tokens, axes)
        mapped = jax.shard_map(local, in_specs=spread, out_specs=PartitionSpec(tokens, None), check_vma=False)
        return mapped(state, x, weights)

    def _sum(
        self,
        x: Float[Array, "tokens hidden"],
        weights: Float[Array, "tokens experts"],
        experts: tuple[ExpertLinear, ExpertLinear, ExpertLinear],
    ) -> Float[Array, "tokens hidden"]:
        """One expert after the other, over all tokens, in float32; those that no token chose are not even read."""
        gate, up, down = experts

        def step(total: jax.Array, expert: jax.Array) -> tuple[jax.Array, None]:
            weight = jax.lax.dynamic_slice_in_dim(weights, expert, 1, axis=1)

            def add(total: jax.Array) -> jax.Array:
                hidden = self.config.activation(gate(x, expert), up(x, expert))
                return total + weight * down(hidden, expert).astype(jnp.float32)

            return jax.lax.cond(jnp.any(weight != 0), add, lambda same: same, total), None

        start = jnp.zeros(x.shape, jnp.float32)
        total, _ = jax.lax.scan(jax.checkpoint(step), start, jnp.arange(weights.shape[1]))
        return total
