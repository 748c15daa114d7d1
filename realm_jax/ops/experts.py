"""A mixture of experts: which of its feed-forward blocks each token goes to, and their weighted sum."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

import cpu_kernels
from cpu_kernels import ClampedSwiGLU, Gate, PackedMatrix, Rms
from pallas_kernels import moe_grouped_matmul as grouped
from pallas_kernels.routing import Blocks, block_rows, combine, gather
from pallas_kernels.routing import route as route_rows
from realm_jax.ops.backends import instruction_set_of, is_native, layout_name, pallas_backend
from realm_jax.ops.matmul import quantized_matmul
from realm_jax.ops.norm import normalise
from realm_jax.ops.split import LinearMap, tokens_axis
from realm_jax.sharding import current_mesh

__all__ = ["ClampedSwiGLU", "Experts", "GatedActivation", "apply_expert", "mix_experts", "route", "swiglu"]

GatedActivation = Callable[[jax.Array, jax.Array], jax.Array]


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """`silu(gate) * up`."""
    return jax.nn.silu(gate) * up


@functools.partial(jax.tree_util.register_dataclass, data_fields=["gate", "up", "down"], meta_fields=["activation"])
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Experts:
    """The maps of all experts: gate and up `W[experts, inner, hidden]`, down `W[experts, hidden, inner]`.

    Biases are `[experts, rows]`.
    """

    gate: LinearMap
    up: LinearMap
    down: LinearMap
    activation: GatedActivation


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def route(
    logits: Float[Array, "tokens experts"],
    chosen: int,
    normalise: bool = True,
    scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "tokens experts"]:
    """The weights of the `chosen` experts with the largest logits, the first among equals; zero for the others.

    They are the softmax over the logits of those where `normalise`, over all logits otherwise, times `scale`.
    """
    # On a mesh XLA splits the tokens, which it cannot do with a call of C++.
    if is_native(implementation) and logits.shape[-1] <= cpu_kernels.MOST_EXPERTS and current_mesh() is None:
        instruction_set = instruction_set_of(implementation)
        return cpu_kernels.route(logits, chosen, normalise=normalise, scale=scale, instruction_set=instruction_set)
    return _route(logits, chosen, normalise, scale)


def _route(logits: jax.Array, chosen: int, normalise: bool, scale: float) -> jax.Array:
    largest, experts = jax.lax.top_k(logits, chosen)
    normaliser = jax.nn.logsumexp(largest if normalise else logits, axis=-1, keepdims=True)
    weights = jnp.exp(largest - normaliser) * scale
    return jnp.put_along_axis(jnp.zeros_like(logits), experts, weights, axis=-1, inplace=False)


@route.defjvp
def _route_jvp(
    chosen: int, normalise: bool, scale: float, implementation: str | None, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    _, out = jax.jvp(lambda logits: _route(logits, chosen, normalise, scale), primals, tangents)
    return route(*primals, chosen, normalise, scale, implementation), out


def mix_experts(
    x: Float[Array, "tokens hidden"],
    weights: Float[Array, "tokens experts"],
    experts: Experts,
    *,
    most: int,
    norm: Rms | None = None,
    implementation: str | None = None,
) -> Float[Array, "tokens hidden"]:
    """`sum_e weights[:, e] * down_e(activation(gate_e(x), up_e(x)))`, added up in float32, in `x.dtype`.

    Where a norm is given, x stands for `norm(x)`.

    `weights` are zero where a token does not go to an expert, and at most `most` of a token's are not. On a mesh each
    device adds up its own experts, and the sums are added over the devices.

    `cpu` has one call for all of it, `triton` and `tpu` one for each of the three maps (see
    `pallas_kernels.moe_grouped_matmul`), where these are in their layout; else there is a loop over the experts.
    """
    choices = _Choices(most=most, experts=weights.shape[1])
    if current_mesh() is None:
        return _sum(x, weights, experts, choices, norm, implementation).astype(x.dtype)
    x = x if norm is None else norm(x)
    split, tokens = experts.gate.weight.split, tokens_axis(x)
    axes = split[0] if split else None

    def local(x: jax.Array, weights: jax.Array, experts: Experts) -> jax.Array:
        total = _sum(x, weights, experts, choices, None, implementation)
        return (total if axes is None else jax.lax.psum(total, axes)).astype(x.dtype)

    spread = PartitionSpec(tokens, None), PartitionSpec(tokens, axes), PartitionSpec(axes)
    mapped = jax.shard_map(local, in_specs=spread, out_specs=PartitionSpec(tokens, None), check_vma=False)
    return mapped(x, weights, experts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choices:
    """How many `experts` the model has, also where a device has a part of them, and the `most` that a token goes to."""

    most: int
    experts: int


def _sum(
    x: Float[Array, "tokens hidden"],
    weights: Float[Array, "tokens experts"],
    experts: Experts,
    choices: _Choices,
    norm: Rms | None,
    implementation: str | None,
) -> Float[Array, "tokens hidden"]:
    """The weighted sum in float32; experts that no token chose are not even read."""
    layout = layout_name(implementation)
    packed = all(one.weight.layout == layout for one in (experts.gate, experts.up, experts.down))
    if packed and is_native(implementation) and _native_activation(experts) is not None:
        return _native_sum(implementation, x, weights, experts, norm)
    x = x if norm is None else normalise(norm, x, implementation=implementation)
    if packed and pallas_backend(implementation) is not None:
        return _grouped_sum(x, weights, experts, choices, implementation)
    return _loop(x, weights, experts, implementation)


def _loop(
    x: Float[Array, "tokens hidden"],
    weights: Float[Array, "tokens experts"],
    experts: Experts,
    implementation: str | None,
) -> Float[Array, "tokens hidden"]:
    """One expert after the other, over all tokens."""

    def step(total: jax.Array, expert: jax.Array) -> tuple[jax.Array, None]:
        weight = jax.lax.dynamic_slice_in_dim(weights, expert, 1, axis=1)

        def add(total: jax.Array) -> jax.Array:
            gate, up = (apply_expert(one, x, expert, implementation) for one in (experts.gate, experts.up))
            out = apply_expert(experts.down, experts.activation(gate, up), expert, implementation)
            return total + weight * out.astype(jnp.float32)

        return jax.lax.cond(jnp.any(weight != 0), add, lambda same: same, total), None

    start = jnp.zeros(x.shape, jnp.float32)
    total, _ = jax.lax.scan(jax.checkpoint(step), start, jnp.arange(weights.shape[1]))
    return total


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _native_sum(
    implementation: str | None, x: jax.Array, weights: jax.Array, experts: Experts, norm: Rms | None
) -> jax.Array:
    gate, up, down = (_packed(one) for one in (experts.gate, experts.up, experts.down))
    activation = _native_activation(experts)
    assert activation is not None
    options = {"norm": norm, "instruction_set": instruction_set_of(implementation)}
    return cpu_kernels.mix_experts(x, weights, gate, up, down, activation, **options)


@_native_sum.defjvp
def _native_sum_jvp(
    implementation: str | None, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    """Derivatives are those of the loop through XLA, which rounds no activations."""
    leaves, structure = jax.tree.flatten(primals)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def through_xla(*values: jax.Array) -> jax.Array:
        arguments = list(leaves)
        for i, value in zip(moving, values, strict=True):
            arguments[i] = value
        x, weights, experts, norm = jax.tree.unflatten(structure, arguments)
        return _loop(x if norm is None else norm(x), weights, experts, "xla")

    directions = jax.tree.leaves(tangents)
    _, out = jax.jvp(through_xla, [leaves[i] for i in moving], [directions[i] for i in moving])
    return _native_sum(implementation, *primals), out


def _native_activation(experts: Experts) -> Gate | ClampedSwiGLU | None:
    """The activation as native kernels know it; None where they do not."""
    if experts.activation is swiglu:
        return "silu"
    return experts.activation if isinstance(experts.activation, ClampedSwiGLU) else None


def _packed(maps: LinearMap) -> PackedMatrix:
    stored = maps.weight
    shape = (stored.shape[-2], stored.shape[-1])
    return PackedMatrix(tiles=stored.data, kind=stored.ggml_type.name, shape=shape, bias=maps.bias)


def _grouped_sum(
    x: Float[Array, "tokens hidden"],
    weights: Float[Array, "tokens experts"],
    experts: Experts,
    choices: _Choices,
    implementation: str | None,
) -> Float[Array, "tokens hidden"]:
    """Each token once for each of its experts, in blocks of rows of one of them, in float32."""
    block = block_rows(len(x) * choices.most, choices.experts)
    routing = route_rows(weights, most=min(choices.most, weights.shape[1]), block=block)
    apply = functools.partial(_apply_blocks, blocks=routing.blocks, implementation=implementation)
    rows = gather(x, routing)
    hidden = experts.activation(apply(experts.gate, rows), apply(experts.up, rows))
    return combine(apply(experts.down, hidden), routing)


def _apply_blocks(
    maps: LinearMap, x: Float[Array, "rows inner"], *, blocks: Blocks, implementation: str | None
) -> Float[Array, "rows outer"]:
    """The map of each block's expert."""
    chosen = pallas_backend(implementation)
    assert chosen is not None
    backend, interpret = chosen
    stored, (rows, columns) = maps.weight, maps.weight.shape[-2:]
    y = grouped.moe_grouped_matmul(
        x, stored.data, stored.ggml_type.name, (rows, columns), blocks, backend=backend, interpret=interpret
    )
    if maps.bias is None:
        return y
    bias = maps.bias[blocks.owners].astype(y.dtype)
    return (y.reshape(len(bias), -1, rows) + bias[:, None]).reshape(y.shape)


def apply_expert(
    maps: LinearMap, x: Float[Array, "tokens inner"], expert: Int[Array, ""], implementation: str | None = None
) -> Float[Array, "tokens outer"]:
    """The map of one expert; only its own weights are read and decoded."""
    stored = maps.weight
    own = stored.with_data(
        jax.tree.map(lambda part: jax.lax.dynamic_index_in_dim(part, expert, keepdims=False), stored.data)
    )
    y = quantized_matmul(x, own, implementation=implementation)
    if maps.bias is None:
        return y
    return y + jax.lax.dynamic_slice_in_dim(maps.bias, expert, 1).astype(y.dtype)
