"""Blocks of a layer in one native call each: all that stands between two sums of the residual stream."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Shaped

from cpu_kernels.attention import AttentionOptions, attention_arguments, check_attention, filled_out, paged_attention
from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.native import settings, target
from cpu_kernels.projection import (
    Gate,
    PackedMatrix,
    Rms,
    gate_setting,
    matrix_settings,
    norm_settings,
    project,
    project_add,
    project_gated,
)

__all__ = ["attention_block", "gated_mlp"]


def gated_mlp(
    x: Float[Array, "tokens columns"],
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
    activation: Gate,
    *,
    norm: Rms | None = None,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> Float32[Array, "tokens columns"]:
    """`project_add(project_gated(x, gate, up, ...), down, x, ...)` with the same bits, in one call.

    Derivatives and batches are those of the two.

    Raises:
        ValueError: the matrices do not follow each other, or x is not what they take and add to.
        RuntimeError: the native library cannot be used.
    """
    if gate.shape != up.shape or down.shape != gate.shape[::-1]:
        shapes = [matrix.shape for matrix in (gate, up, down)]
        raise ValueError(f"gate and up must have one shape and down its transpose, got {shapes}")
    _check_stream(x, [gate, up, down])
    block = _GatedMLP(activation=activation, how=_How(float(scale), int(instruction_set), threads or 0))
    return _run(block, x, _Branch((gate, up), down, norm, post_norm))


def attention_block(
    x: Float[Array, "tokens columns"],
    qkv: tuple[PackedMatrix, PackedMatrix, PackedMatrix],
    out: PackedMatrix,
    cache: Shaped[Array, "blocks kv_heads 2 elements"],
    batch: tuple[
        Int32[Array, " tokens"], Int32[Array, " starts"], Int32[Array, " sequences"], Int32[Array, "sequences pages"]
    ],
    options: AttentionOptions,
    *,
    norm: Rms | None = None,
    rope: tuple[Float32[Array, "tokens pairs"], Float32[Array, "tokens pairs"]] | None = None,
    head_norms: tuple[Float32[Array, " q_channels"], Float32[Array, " k_channels"]] | None = None,
    sinks: Float32[Array, " heads"] | None = None,
    scale: float = 1.0,
    post_norm: Rms | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> tuple[Float32[Array, "tokens columns"], Shaped[Array, "blocks kv_heads 2 elements"]]:
    """`project_add(paged_attention(project(x, qkv, ...), cache, ...), out, x, ...)` with the same bits, in one call.

    Also returns the cache, which is updated without a copy where the caller donates it. Derivatives and batches are
    those of the three.

    Raises:
        ValueError: the matrices do not follow each other, or x or the cache is not what they take.
        jax.errors.JaxRuntimeError: a position or block lies outside; nothing is written then.
        RuntimeError: the native library cannot be used.
    """
    (q_size, k_size, v_size), kv_heads = (matrix.shape[0] for matrix in qkv), cache.shape[1]
    head_dim = k_size // kv_heads
    shapes = [matrix.shape for matrix in (*qkv, out)]
    if (k_size, v_size, out.shape[1]) != (kv_heads * head_dim, k_size, q_size) or q_size % k_size:
        raise ValueError(f"q, k, v and out must follow each other with {kv_heads} heads in the cache, got {shapes}")
    _check_stream(x, [*qkv, out])
    heads = (q_size // head_dim, kv_heads, head_dim)
    check_attention(heads, cache, options, (rope is not None, head_norms is not None))
    block = _AttentionBlock(options=options, heads=heads, how=_How(float(scale), int(instruction_set), threads or 0))
    arrays = (cache, batch, filled_out(x.shape[0], rope, head_norms, sinks))
    return _run(block, x, _Branch(qkv, out, norm, post_norm), *arrays)


class _How(NamedTuple):
    scale: float
    instruction_set: int
    threads: int

    @property
    def options(self) -> dict[str, Any]:
        """As the operations take them that a block is made of."""
        return {"instruction_set": InstructionSet(self.instruction_set), "threads": self.threads or None}


class _Branch(NamedTuple):
    """The matrices that a block begins with, the one that it ends with, and the norms before and after."""

    matrices: tuple[PackedMatrix, ...]
    out: PackedMatrix
    norm: Rms | None
    post_norm: Rms | None

    @property
    def operands(self) -> list[jax.Array]:
        return jax.tree.leaves((self.norm, self.matrices, self.out, self.post_norm))

    def settings(self, *between: int, scale: float) -> list[int | float]:
        """What is static of it, `between` being what stands between the first norm and the matrices."""
        norm, post_norm = (norm_settings(None if rms is None else rms.eps) for rms in (self.norm, self.post_norm))
        described = [matrix_settings(m.kind, m.shape[0], m.bias is not None) for m in (*self.matrices, self.out)]
        return [*norm, *between, *itertools.chain.from_iterable(described), scale, *post_norm]

    def add(self, x: jax.Array, y: jax.Array, how: _How) -> jax.Array:
        return project_add(y, self.out, x, scale=how.scale, post_norm=self.post_norm, **how.options)


class _Block(Protocol):
    """A block, of which `native` and `composed` compute the same bits: in one call, and by one operation each."""

    def native(self, x: jax.Array, branch: _Branch, *arrays: Any) -> Any: ...

    def composed(self, x: jax.Array, branch: _Branch, *arrays: Any) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GatedMLP:
    activation: Gate
    how: _How

    def native(self, x: jax.Array, branch: _Branch) -> jax.Array:
        hidden = jax.ShapeDtypeStruct((x.shape[0], branch.out.shape[1]), jnp.float32)
        call = jax.ffi.ffi_call(target("realm_gated_mlp"), (jax.ShapeDtypeStruct(x.shape, jnp.float32), hidden))
        numbers = branch.settings(gate_setting(self.activation), scale=self.how.scale)
        y, _ = call(x, *branch.operands, **settings(*self.how[1:], *numbers))
        return y

    def composed(self, x: jax.Array, branch: _Branch) -> jax.Array:
        gate, up = branch.matrices
        hidden = project_gated(x, gate, up, self.activation, norm=branch.norm, **self.how.options)
        return branch.add(x, hidden, self.how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _AttentionBlock:
    options: AttentionOptions
    heads: tuple[int, int, int]
    how: _How

    def native(
        self,
        x: jax.Array,
        branch: _Branch,
        cache: jax.Array,
        batch: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
        others: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array]:
        between = 2 * sum(matrix.shape[0] for matrix in branch.matrices[:2])  # q, k, v and what attention makes of them
        results = (
            jax.ShapeDtypeStruct(x.shape, jnp.float32),
            jax.ShapeDtypeStruct(cache.shape, cache.dtype),
            jax.ShapeDtypeStruct((x.shape[0], between), jnp.float32),
        )
        own, numbers = attention_arguments(self.options, cache, batch, self.heads, others)
        numbers += branch.settings(scale=self.how.scale)
        call = jax.ffi.ffi_call(target("realm_attention_block"), results, input_output_aliases={0: 1})
        y, cache, _ = call(cache, batch[-1], x, *own, *branch.operands, **settings(*self.how[1:], *numbers))
        return y, cache

    def composed(
        self,
        x: jax.Array,
        branch: _Branch,
        cache: jax.Array,
        batch: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
        others: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array]:
        cos, sin, q_norm, k_norm, sinks = others
        q, k, v = (
            y.reshape(x.shape[0], -1, self.heads[2])
            for y in project(x, branch.matrices, norm=branch.norm, **self.how.options)
        )
        attended, cache = paged_attention(
            (q, k, v),
            cache,
            batch,
            self.options,
            rope=None if self.options.rope_style is None else (cos, sin),
            norms=None if self.options.norm is None else (q_norm, k_norm),
            sinks=sinks if sinks.size else None,
            **self.how.options,
        )
        return branch.add(x, attended.reshape(x.shape[0], -1), self.how), cache


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(block: _Block, *arrays: Any) -> Any:
    return _batched(block)(*arrays)


@_run.defjvp
def _run_jvp(block: _Block, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    return jax.jvp(block.composed, primals, tangents)


@functools.cache
def _batched(block: _Block) -> Any:
    """The native call; under vmap the operations that it stands for, each with a rule of its own."""
    call = jax.custom_batching.custom_vmap(block.native)

    @call.def_vmap
    def rule(size: int, batched: Any, *arrays: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda flag: 0 if flag else None, batched)
        results = jax.vmap(block.composed, in_axes=tuple(axes), axis_size=size)(*arrays)
        return results, jax.tree.map(lambda _: True, results)

    return call


def _check_stream(x: jax.Array, matrices: Sequence[PackedMatrix]) -> None:
    """Raise unless x is what the first matrices take, and what the product with the last one is added to."""
    *first, last = (matrix.shape for matrix in matrices)
    widths = {last[0], *(columns for _, columns in first)}
    if x.dtype != jnp.float32 or x.ndim != 2 or {x.shape[1]} != widths:
        raise ValueError(
            f"x must be float32[tokens, columns] for matrices of {[*first, last]}, got {x.dtype} {x.shape}"
        )
