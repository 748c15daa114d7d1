"""Projections: products with packed matrices together with the norms, gates and residuals around them, in one call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.native import settings, target
from cpu_kernels.tiles import FORMATS, reference_matmul

__all__ = ["GATES", "Gate", "PackedMatrix", "Rms", "activate", "project", "project_add", "project_gated"]

Gate = Literal["silu", "gelu_tanh"]
GATES: tuple[Gate, ...] = ("silu", "gelu_tanh")
"""The activations of `project_gated`, in the order of src/kernels.h."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tiles", "bias"], meta_fields=["kind", "shape"])
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedMatrix:
    """A matrix `W[rows, columns]` in tiles (see `pack`), and a bias `float32[rows]` or None."""

    tiles: Any
    kind: str
    shape: tuple[int, int]
    bias: Any = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["eps"])
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rms:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32 (Zhang and Sennrich, 2019)."""

    weight: Any
    eps: float

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise through XLA; the result has `x.dtype`."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        factor = self.weight.reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * scale * factor).astype(x.dtype)


def activate(name: Gate, x: jax.Array) -> jax.Array:
    """`silu`: `x / (1 + exp(-x))`; `gelu_tanh`: the GELU approximated by tanh (Hendrycks and Gimpel, 2016)."""
    return jax.nn.silu(x) if name == "silu" else jax.nn.gelu(x, approximate=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spec:
    """What of a projection is static. `eps` None: no norm; `scale` None: no residual."""

    kinds: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    biased: tuple[bool, ...]
    eps: float | None = None
    halves: bool = False
    gate: Gate | None = None
    scale: float | None = None
    post_eps: float | None = None
    instruction_set: int = 0
    threads: int = 0

    @property
    def outputs(self) -> tuple[int, ...]:
        """Rows of the matrices whose products come back."""
        return self.rows if self.gate is None else self.rows[:1]


def project(
    x: Float[Array, "*tokens columns"],
    matrices: Sequence[PackedMatrix],
    *,
    norm: Rms | None = None,
    activation_group: Literal[16, 32] = 32,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> tuple[jax.Array, ...]:
    """`norm(x) @ W.T + bias` for each matrix, reading and rounding x once; each `[*tokens, rows]` in `x.dtype`.

    Rounding is that of `quantized_matmul`: equal to it on the normalised x, bit for bit, whatever else is computed
    beside it, where `activation_group`, the columns of x that share a scale, is 32. With 16, fewer columns are rounded
    as coarsely as the largest of them asks for, and sixteen rows of Q8_0 take 15% more time (AVX-512 VNNI, Zen 4).
    Plain floats are multiplied by x as it is.

    Raises:
        ValueError: x does not end in the matrices' columns.
        RuntimeError: the native library cannot be used.
    """
    return _run(x, matrices, norm, {"halves": activation_group == 16}, (instruction_set, threads))


def project_gated(
    x: Float[Array, "*tokens columns"],
    gate: PackedMatrix,
    up: PackedMatrix,
    activation: Gate,
    *,
    norm: Rms | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float[Array, "*tokens rows"]:
    """`activate(activation, norm(x) @ gate.T) * (norm(x) @ up.T)`, each product with its bias, in `x.dtype`.

    Raises:
        ValueError: the matrices differ in shape, or x does not end in their columns.
        RuntimeError: the native library cannot be used.
    """
    if gate.shape != up.shape:
        raise ValueError(f"gate and up must have one shape, got {gate.shape} and {up.shape}")
    (y,) = _run(x, (gate, up), norm, {"gate": activation}, (instruction_set, threads))
    return y


def project_add(
    x: Float[Array, "*tokens columns"],
    matrix: PackedMatrix,
    residual: Float[Array, "*tokens rows"],
    *,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float[Array, "*tokens rows"]:
    """`residual + scale * post_norm(x @ W.T + bias)`, in the dtype of the residual.

    Raises:
        ValueError: x does not end in the matrix's columns, or the residual has another shape than the product.
        RuntimeError: the native library cannot be used.
    """
    if residual.shape != (*x.shape[:-1], matrix.shape[0]):
        raise ValueError(
            f"the residual must have shape {(*x.shape[:-1], matrix.shape[0])} like the product, got {residual.shape}"
        )
    added = {"scale": float(scale), "post_eps": None if post_norm is None else post_norm.eps}
    flat = residual.astype(jnp.float32).reshape(-1, residual.shape[-1])
    last = (flat,) if post_norm is None else (flat, post_norm.weight)
    (y,) = _run(x, (matrix,), None, added, (instruction_set, threads), last)
    return y.astype(residual.dtype)


def _run(
    x: jax.Array,
    matrices: Sequence[PackedMatrix],
    norm: Rms | None,
    options: dict[str, Any],
    how: tuple[InstructionSet, int | None],
    last: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, ...]:
    columns = matrices[0].shape[1]
    if x.shape[-1] != columns or any(matrix.shape[1] != columns for matrix in matrices):
        raise ValueError(f"x must end in the columns of all matrices, got {x.shape} and {[m.shape for m in matrices]}")
    spec = _Spec(
        kinds=tuple(matrix.kind for matrix in matrices),
        rows=tuple(matrix.shape[0] for matrix in matrices),
        columns=columns,
        biased=tuple(matrix.bias is not None for matrix in matrices),
        eps=None if norm is None else norm.eps,
        instruction_set=int(how[0]),
        threads=how[1] or 0,
        **options,
    )
    operands = jax.tree.leaves((norm, matrices))
    flat = x.astype(jnp.float32).reshape(-1, columns)
    results = _projection(spec, flat, *operands, *last)
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]).astype(x.dtype) for y in results)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _projection(spec: _Spec, x: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
    return _batched(spec)(x, *operands)


@_projection.defjvp
def _projection_jvp(
    spec: _Spec, primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    moving = [i for i, primal in enumerate(primals) if jnp.issubdtype(primal.dtype, jnp.floating)]

    def through_xla(*values: jax.Array) -> tuple[jax.Array, ...]:
        arguments = list(primals)
        for i, value in zip(moving, values, strict=True):
            arguments[i] = value
        return _reference(spec, *arguments)

    _, out = jax.jvp(through_xla, [primals[i] for i in moving], [tangents[i] for i in moving])
    return _projection(spec, *primals), out


@functools.cache
def _batched(spec: _Spec) -> Any:
    """The native call; under vmap over activations their batch axis becomes more rows."""
    call = jax.custom_batching.custom_vmap(functools.partial(_native, spec))

    @call.def_vmap
    def rule(size: int, batched: list[bool], *arguments: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
        rows = [0] if spec.scale is None else [0, len(arguments) - (1 if spec.post_eps is None else 2)]
        if any(flag and i not in rows for i, flag in enumerate(batched)):
            one = [array if flag else None for array, flag in zip(arguments, batched, strict=True)]
            mapped = jax.lax.map(lambda own: call(*filled(own, arguments)), one)
            return mapped, (True,) * len(mapped)
        flat = list(arguments)
        for i in rows:
            whole = arguments[i] if batched[i] else jnp.broadcast_to(arguments[i][None], (size, *arguments[i].shape))
            flat[i] = whole.reshape(-1, whole.shape[-1])
        results = call(*flat)
        return tuple(y.reshape(size, -1, y.shape[-1]) for y in results), (True,) * len(results)

    return call


def filled(own: Sequence[Any], others: Sequence[jax.Array]) -> list[jax.Array]:
    """`own`, with what is None in it taken from `others`."""
    return [other if mine is None else mine for mine, other in zip(own, others, strict=True)]


def _native(spec: _Spec, x: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
    results = [jax.ShapeDtypeStruct((x.shape[0], rows), jnp.float32) for rows in spec.outputs]
    call = jax.ffi.ffi_call(target("realm_project"), results)
    matrices = zip(spec.kinds, spec.rows, spec.biased, strict=True)
    static = settings(
        spec.instruction_set,
        spec.threads,
        spec.halves,
        *norm_settings(spec.eps),
        gate_setting(spec.gate),
        len(spec.kinds),
        *[number for kind, rows, biased in matrices for number in matrix_settings(kind, rows, biased)],
        spec.scale is not None,
        1.0 if spec.scale is None else spec.scale,
        *norm_settings(spec.post_eps),
    )
    return tuple(call(x, *operands, **static))


def matrix_settings(kind: str, rows: int, biased: bool) -> tuple[int, ...]:
    """A matrix as `TakeMatrix` of src/operands.h reads it."""
    return FORMATS[kind].index, rows, biased


def norm_settings(eps: float | None) -> tuple[int | float, ...]:
    """A norm, or that there is none, as `TakeNorm` reads it."""
    return eps is not None, float(eps or 0)


def gate_setting(gate: Gate | None) -> int:
    """The number of an activation in src/kernels.h."""
    return 0 if gate is None else 1 + GATES.index(gate)


def _reference(spec: _Spec, x: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """The same projection through XLA, without rounding activations: what derivatives are taken of."""
    left = list(operands)
    if spec.eps is not None:
        x = Rms(weight=left.pop(0), eps=spec.eps)(x)
    products = []
    for kind, rows, biased in zip(spec.kinds, spec.rows, spec.biased, strict=True):
        y = reference_matmul(x, left.pop(0), kind, (rows, spec.columns))
        products.append(y + left.pop(0)[None] if biased else y)
    if spec.gate is not None:
        return (activate(spec.gate, products[0]) * products[1],)
    if spec.scale is not None:
        residual = left.pop(0)
        branch = products[0] if spec.post_eps is None else Rms(weight=left.pop(0), eps=spec.post_eps)(products[0])
        return (residual + branch * spec.scale,)
    return tuple(products)
