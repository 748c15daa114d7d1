"""Linear maps and what stands around them in a layer: a norm before, a gate between, a residual after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import cpu_kernels
from cpu_kernels import Gate, PackedMatrix, Rms, activate
from realm_jax.ops.backends import instruction_set_of, is_native, without_rounding
from realm_jax.ops.matmul import quantized_matmul
from realm_jax.ops.norm import normalise
from realm_jax.ops.split import LinearMap, apply_parts, rows_axis
from realm_jax.sharding import constrain, current_mesh

__all__ = [
    "Gate",
    "LinearMap",
    "Rms",
    "activate",
    "add_branch",
    "gated_mlp",
    "packed_maps",
    "project",
    "project_add",
    "project_gated",
]


def project(
    x: Float[Array, "*tokens columns"],
    maps: Sequence[LinearMap],
    *,
    norm: Rms | None = None,
    activation_group: Literal[16, 32] = 32,
    implementation: str | None = None,
) -> tuple[jax.Array, ...]:
    """Each map of `norm(x)`, `[*tokens, rows]` in `x.dtype`.

    `activation_group` is how many columns of x share a scale where native kernels round it. Pallas kernels, which round
    to 8 bits with a scale for 32 columns or not at all, do not where 16 are asked for.
    """
    if current_mesh() is not None:

        def local(x: jax.Array, own: Sequence[LinearMap], norm: Rms | None) -> tuple[jax.Array, ...]:
            return project(x, own, norm=norm, activation_group=activation_group, implementation=implementation)

        return apply_parts(local, x, maps, norm)
    packed = packed_maps(maps, implementation)
    if packed is not None:
        options = {"activation_group": activation_group, "instruction_set": instruction_set_of(implementation)}
        return cpu_kernels.project(x, packed, norm=norm, **options)
    x = x if norm is None else normalise(norm, x, implementation=implementation)
    implementation = implementation if activation_group == 32 else without_rounding(implementation)
    return tuple(_apply(one, x, implementation) for one in maps)


def project_gated(
    x: Float[Array, "*tokens columns"],
    maps: tuple[LinearMap, LinearMap],
    activation: Gate,
    *,
    norm: Rms | None = None,
    implementation: str | None = None,
) -> Float[Array, "*tokens rows"]:
    """`activation(gate(norm(x))) * up(norm(x))` for `maps = (gate, up)` (Shazeer, 2020)."""
    if current_mesh() is not None and rows_axis(maps[0]) == rows_axis(maps[1]):

        def local(x: jax.Array, own: Sequence[LinearMap], norm: Rms | None) -> tuple[jax.Array, ...]:
            both = (own[0], own[1])
            return (project_gated(x, both, activation, norm=norm, implementation=implementation),)

        return apply_parts(local, x, maps, norm, outputs=1)[0]
    packed = None if current_mesh() is not None else packed_maps(maps, implementation)
    if packed is not None:
        gate, up = packed
        instruction_set = instruction_set_of(implementation)
        return cpu_kernels.project_gated(x, gate, up, activation, norm=norm, instruction_set=instruction_set)
    gated, plain = project(x, maps, norm=norm, implementation=implementation)
    return activate(activation, gated) * plain


def project_add(
    x: Float[Array, "*tokens columns"],
    one: LinearMap,
    residual: Float[Array, "*tokens rows"],
    *,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    implementation: str | None = None,
) -> Float[Array, "*tokens rows"]:
    """`residual + scale * post_norm(one(x))`."""
    packed = packed_maps((one,), implementation)
    if current_mesh() is not None:
        if packed is None or (post_norm is not None and rows_axis(one) is not None):  # the norm sees whole rows
            (branch,) = project(x, (one,), implementation=implementation)
            return add_branch(residual, branch, scale=scale, post_norm=post_norm)

        def local(
            x: jax.Array, own: Sequence[LinearMap], norm: Rms | None, residual: jax.Array
        ) -> tuple[jax.Array, ...]:
            options = {"scale": scale, "post_norm": norm, "implementation": implementation}
            return (project_add(x, own[0], residual, **options),)

        return constrain(apply_parts(local, x, (one,), post_norm, residual=residual)[0], "tokens", "hidden")
    if packed is not None:
        instruction_set = instruction_set_of(implementation)
        return cpu_kernels.project_add(
            x, packed[0], residual, scale=scale, post_norm=post_norm, instruction_set=instruction_set
        )
    branch = _apply(one, x, implementation)
    return add_branch(residual, branch, scale=scale, post_norm=post_norm, implementation=implementation)


def gated_mlp(
    x: Float[Array, "tokens columns"],
    maps: tuple[LinearMap, LinearMap, LinearMap],
    activation: Gate,
    *,
    norm: Rms | None = None,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    implementation: str | None = None,
) -> Float[Array, "tokens columns"]:
    """`x + scale * post_norm(down(activation(gate(norm(x))) * up(norm(x))))` for `maps = (gate, up, down)`."""
    gate, up, down = maps
    packed = None if current_mesh() is not None or x.dtype != jnp.float32 else packed_maps(maps, implementation)
    if packed is not None:
        options = {"scale": scale, "post_norm": post_norm, "instruction_set": instruction_set_of(implementation)}
        return cpu_kernels.gated_mlp(x, packed[0], packed[1], packed[2], activation, norm=norm, **options)
    hidden = project_gated(x, (gate, up), activation, norm=norm, implementation=implementation)
    return project_add(hidden, down, x, scale=scale, post_norm=post_norm, implementation=implementation)


def add_branch(
    residual: Float[Array, "*tokens size"],
    branch: Float[Array, "*tokens size"],
    *,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    implementation: str | None = None,
) -> Float[Array, "*tokens size"]:
    """`residual + scale * post_norm(branch)`."""
    branch = constrain(branch, "tokens", "hidden")
    branch = branch if post_norm is None else normalise(post_norm, branch, implementation=implementation)
    return residual + (branch if scale == 1.0 else branch * scale)


def packed_maps(maps: Sequence[LinearMap], implementation: str | None) -> tuple[PackedMatrix, ...] | None:
    """The maps as the native kernels take them; None where one of them goes through XLA."""
    weights = [one.weight for one in maps]
    if not is_native(implementation) or any(weight.layout != "cpu" for weight in weights):
        return None
    return tuple(
        PackedMatrix(
            tiles=one.weight.data,
            kind=one.weight.ggml_type.name,
            shape=(one.weight.shape[0], one.weight.shape[1]),
            bias=one.bias,
        )
        for one in maps
    )


def _apply(one: LinearMap, x: jax.Array, implementation: str | None) -> jax.Array:
    y = quantized_matmul(x, one.weight, implementation=implementation)
    if one.bias is None:
        return y
    return y + one.bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
