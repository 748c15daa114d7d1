"""MLX's fused kernels as operations: primitives of the plug-in jax-mps, with the derivatives and batching they lack.

On an Apple GPU each is one call of a Metal kernel; elsewhere the plug-in lowers the same primitive to plain JAX. What a
kernel returns has the widest type among its operands, whatever the primitive declares: here all of them are float32,
and the casts stand in the program.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cpu_kernels import Rms
from realm_jax.gguf import GGMLType
from realm_jax.quant import affine

_PRIMITIVES = "jax_plugins.mps.ops"


def why_unavailable() -> str | None:
    """Why the primitives cannot be used; None where they can."""
    if _PRIMITIVES in sys.modules:
        return None
    try:
        found = importlib.util.find_spec(_PRIMITIVES)
    except ModuleNotFoundError:
        found = None
    if found is not None:
        return None
    return (
        "the plug-in jax-mps is not installed; "
        "on Apple silicon, with Python 3.12 or newer, install it by: pip install 'realm-jax[metal]'"
    )


def quantized_matmul(
    x: Float[Array, "*batch columns"], stored: affine.Affine, kind: GGMLType
) -> Float[Array, "*batch rows"]:
    """`x @ affine.unpack(stored, kind).T`, accumulated in float32, in `x.dtype`.

    Derivatives with respect to x, in both modes, are those of the product with the decoded weight.
    """
    form, primitives = affine.FORMATS[kind], importlib.import_module(_PRIMITIVES)

    def fused(x: jax.Array, *stored: jax.Array) -> jax.Array:
        y = primitives.quantized_matmul(x.astype(jnp.float32), *stored, group_size=form.group, bits=form.bits)
        return y.astype(x.dtype)

    def reference(x: jax.Array, *stored: Any) -> jax.Array:
        weight = affine.unpack((stored[0], stored[1], stored[2]), kind).astype(x.dtype)
        options: Any = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
        return jnp.einsum("...k,nk->...n", x, weight, **options).astype(x.dtype)

    def tangent(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> jax.Array:
        return reference(tangents[0], *primals[1:])

    return _with_rules(fused, reference, tangent)(x, *stored)


def rms_norm(norm: Rms, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """`norm(x)`: in float32, in `x.dtype`."""
    primitives = importlib.import_module(_PRIMITIVES)

    def fused(x: jax.Array, weight: jax.Array) -> jax.Array:
        wide = (x.astype(jnp.float32), weight.astype(jnp.float32))
        return primitives.rms_norm(*wide, eps=norm.eps).astype(x.dtype)

    def reference(x: jax.Array, weight: jax.Array) -> jax.Array:
        return dataclasses.replace(norm, weight=weight)(x)

    return _with_rules(fused, reference)(x, norm.weight)


def attention(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    v: Float[Array, "batch heads keys head_dim"],
    visible: Bool[Array, "batch 1 1 keys"],
    scale: float,
) -> Float[Array, "batch heads queries head_dim"]:
    """`softmax(scale q k) v` over the visible keys, in float32; finite, without a meaning, where none is visible."""
    primitives = importlib.import_module(_PRIMITIVES)

    def fused(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        wide = (part.astype(jnp.float32) for part in (q, k, v))
        return primitives.sdpa(*wide, scale=scale, mask=visible)

    def reference(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        q, k, v = (part.astype(jnp.float32) for part in (q, k, v))
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision="highest") * scale
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, v, precision="highest")

    return _with_rules(fused, reference)(q, k, v, visible)


def _with_rules(
    fused: Callable[..., jax.Array],
    reference: Callable[..., jax.Array],
    tangent: Callable[[tuple[Any, ...], tuple[Any, ...]], jax.Array] | None = None,
) -> Callable[..., jax.Array]:
    """`fused`, under `vmap` the `reference`, and with the derivative of that, or the `tangent` that is given."""

    @jax.custom_batching.custom_vmap
    def batched(*operands: Any) -> jax.Array:
        return fused(*operands)

    @batched.def_vmap
    def _(_: int, in_batched: Any, *operands: Any) -> tuple[jax.Array, bool]:
        axes = tuple(0 if is_batched else None for is_batched in in_batched)
        return jax.vmap(reference, in_axes=axes)(*operands), True

    @jax.custom_jvp
    def call(*operands: Any) -> jax.Array:
        return batched(*operands)

    @call.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        change = jax.jvp(reference, primals, tangents)[1] if tangent is None else tangent(primals, tangents)
        return call(*primals), change

    return call
