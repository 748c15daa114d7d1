"""route and mix_experts: which feed-forward blocks of a mixture each token goes to, and their sum, each in one call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.native import target
from cpu_kernels.projection import GATES, Gate, PackedMatrix, Rms, filled
from cpu_kernels.tiles import FORMATS

__all__ = ["MOST_EXPERTS", "ClampedSwiGLU", "mix_experts", "route"]

MOST_EXPERTS = 4096
"""The most experts that a mixture may have: Choice::kMostExperts of src/kernels.h."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClampedSwiGLU:
    """`g sigmoid(alpha g) (u + 1)` with g = min(gate, limit) and u = clip(up, -limit, limit), as in gpt-oss."""

    alpha: float
    limit: float

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """Combine the two projections through XLA."""
        gate = jnp.minimum(gate, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (jnp.clip(up, -self.limit, self.limit) + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spec:
    """What of a mixture is static."""

    kinds: tuple[str, str, str]
    rows: tuple[int, int]
    activation: Gate | ClampedSwiGLU
    eps: float
    instruction_set: int
    threads: int


def route(
    logits: Float[Array, "*tokens experts"],
    chosen: int,
    *,
    normalise: bool = True,
    scale: float = 1.0,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float[Array, "*tokens experts"]:
    """The weights of the `chosen` experts with the largest logits, the first among equals; zero for the others.

    They are the softmax over the logits of those where `normalise`, over all logits otherwise, times `scale`; all are
    NaN where a logit is. Under vmap, axes in front are more tokens. Not differentiable.

    Raises:
        ValueError: there are fewer experts than are to be chosen, or more than MOST_EXPERTS.
        RuntimeError: the native library cannot be used.
    """
    experts = logits.shape[-1]
    if not 1 <= chosen <= experts <= MOST_EXPERTS:
        raise ValueError(f"1 to {experts} experts can be chosen of {experts} <= {MOST_EXPERTS}, got {chosen}")
    result = jax.ShapeDtypeStruct(logits.shape, jnp.float32)
    call = jax.ffi.ffi_call(target("realm_route"), result, vmap_method="broadcast_all")
    options = {"instruction_set": int(instruction_set), "threads": threads or 0}
    return call(logits.astype(jnp.float32), chosen=chosen, normalise=normalise, scale=np.float32(scale), **options)


def mix_experts(
    x: Float[Array, "tokens hidden"],
    weights: Float[Array, "tokens experts"],
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
    activation: Gate | ClampedSwiGLU,
    *,
    norm: Rms | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float[Array, "tokens rows"]:
    """`sum_e weights[:, e] * down_e(activation(gate_e(x)) * up_e(x))` in float32, over weights that are not zero.

    Where a norm is given, x stands for `norm(x)`.
    Each matrix has an axis of experts in front of its tiles and its bias; `shape` is one expert's. Products round x
    and what lies between as `quantized_matmul` does, and are added up in the order of the experts: a token's row
    depends on nothing else that is computed beside it. Only experts that a token goes to are read. Not differentiable.

    Raises:
        ValueError: the matrices do not fit each other, x or the weights, or there are more than MOST_EXPERTS.
        RuntimeError: the native library cannot be used.
    """
    (inner, hidden), (outer, between), experts = gate.shape, down.shape, weights.shape[-1]
    if up.shape != gate.shape or between != inner or x.shape[-1] != hidden:
        raise ValueError(
            f"gate and up must be [inner, hidden], down [rows, inner] and x end in hidden, got {gate.shape}, "
            f"{up.shape}, {down.shape} and {x.shape}"
        )
    if experts > MOST_EXPERTS or any(matrix.tiles.shape[0] != experts for matrix in (gate, up, down)):
        counts = [matrix.tiles.shape[0] for matrix in (gate, up, down)]
        raise ValueError(
            f"weights must have a column for each of at most {MOST_EXPERTS} experts, got {experts} for {counts}"
        )
    spec = _Spec(
        kinds=(gate.kind, up.kind, down.kind),
        rows=(inner, outer),
        activation=activation,
        eps=0.0 if norm is None else norm.eps,
        instruction_set=int(instruction_set),
        threads=threads or 0,
    )
    operands = [part for matrix in (gate, up, down) for part in (matrix.tiles, _bias(matrix))]
    factor = jnp.zeros(0, jnp.float32) if norm is None else norm.weight
    return _batched(spec)(x.astype(jnp.float32), weights.astype(jnp.float32), factor, *operands)


def _bias(matrix: PackedMatrix) -> jax.Array:
    return jnp.zeros(0, jnp.float32) if matrix.bias is None else matrix.bias


@functools.cache
def _batched(spec: _Spec) -> Any:
    """The native call; under vmap over tokens their batch axis becomes more of them."""
    call = jax.custom_batching.custom_vmap(functools.partial(_native, spec))

    @call.def_vmap
    def rule(size: int, batched: list[bool], *arguments: jax.Array) -> tuple[jax.Array, bool]:
        if any(batched[2:]):
            one = [array if flag else None for array, flag in zip(arguments, batched, strict=True)]
            return jax.lax.map(lambda own: call(*filled(own, arguments)), one), True
        flat = [
            (array if flag else jnp.broadcast_to(array[None], (size, *array.shape))).reshape(-1, array.shape[-1])
            for array, flag in zip(arguments[:2], batched[:2], strict=True)
        ]
        y = call(*flat, *arguments[2:])
        return y.reshape(size, -1, y.shape[-1]), True

    return call


def _native(spec: _Spec, x: jax.Array, weights: jax.Array, norm: jax.Array, *operands: jax.Array) -> jax.Array:
    clamped = spec.activation if isinstance(spec.activation, ClampedSwiGLU) else None
    result = jax.ShapeDtypeStruct((x.shape[0], spec.rows[1]), jnp.float32)
    return jax.ffi.ffi_call(target("realm_mix_experts"), result)(
        x,
        norm,
        weights,
        *operands,
        norm_eps=np.float32(spec.eps),
        kinds=np.array([FORMATS[kind].index for kind in spec.kinds], np.int64),
        rows=np.array(spec.rows, np.int64),
        activation=1 + (len(GATES) if clamped is not None else GATES.index(spec.activation)),  # as in src/kernels.h
        alpha=np.float32(0 if clamped is None else clamped.alpha),
        limit=np.float32(0 if clamped is None else clamped.limit),
        instruction_set=spec.instruction_set,
        threads=spec.threads,
    )
