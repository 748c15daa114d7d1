"""paged_attention: norm, rope, the write to the cache and attention of a layer, in one native kernel."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Shaped

from cpu_kernels.attention_reference import reference_attention
from cpu_kernels.instruction_sets import InstructionSet
from cpu_kernels.kv_cache import CACHE_KINDS, cache_kind, cache_shape
from cpu_kernels.native import settings, target

__all__ = ["AttentionOptions", "paged_attention", "rope_table"]

# As src/attention.h numbers them.
_ROPE_STYLES = (None, "interleaved", "half")
_NORMS = (None, "head", "full")

# No position is as far back as this.
_NO_WINDOW = 2**31


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The static part of an attention: `softmax(softcap(scale q k)) v` under a causal mask and a window.

    `block_size`: positions of a block of the cache. `window` w lets position p see (p - w, p]. `softcap` c maps a score
    s to c tanh(s / c). `rope_style` pairs neighbouring channels ("interleaved") or channel i with i + R ("half"), of
    the first 2 R; None: q and k come rotated. `norm` divides q and k by the root mean square of each head ("head") or
    of all heads' channels ("full"), with `norm_eps` added to the mean square; None: they come normalised.

    Raises:
        ValueError: a window or block size below 1, a softcap that is not positive, or an unknown style or norm.
    """

    block_size: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    rope_style: Literal["interleaved", "half"] | None = None
    norm: Literal["head", "full"] | None = None
    norm_eps: float = 0.0

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be positive, got {self.softcap}")
        if self.rope_style not in _ROPE_STYLES or self.norm not in _NORMS:
            raise ValueError(
                f"rope_style must be one of {_ROPE_STYLES} and norm of {_NORMS}, got {self.rope_style} and {self.norm}"
            )


@dataclass(frozen=True, kw_only=True)
class _Call:
    options: AttentionOptions
    instruction_set: int
    threads: int


def paged_attention(
    qkv: tuple[
        Float[Array, "tokens heads head_dim"],
        Float[Array, "tokens kv_heads head_dim"],
        Float[Array, "tokens kv_heads head_dim"],
    ],
    cache: Shaped[Array, "blocks kv_heads 2 elements"],
    batch: tuple[
        Int32[Array, " tokens"], Int32[Array, " starts"], Int32[Array, " sequences"], Int32[Array, "sequences pages"]
    ],
    options: AttentionOptions,
    *,
    rope: tuple[Float[Array, "tokens pairs"], Float[Array, "tokens pairs"]] | None = None,
    norms: tuple[Float[Array, " q_channels"], Float[Array, " k_channels"]] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    threads: int | None = None,
) -> tuple[Float[Array, "tokens heads head_dim"], Shaped[Array, "blocks kv_heads 2 elements"]]:
    """Normalise and rotate q and k, write k and v to the cache, and attend: the output in `q.dtype`, and the cache.

    `batch = (positions, query_start, context_lens, block_table)`: tokens `query_start[b]:query_start[b + 1]` belong to
    sequence b. A token at position p is written to block `block_table[b, p // block_size]` at `p % block_size` and sees
    the positions up to p, below `context_lens[b]`, and inside the window. Tokens from `query_start[-1]` on are padding:
    they write nothing and their output is zero.

    `rope = (cos, sin)` rotates the first `2 * pairs` channels of each head, `norms = (q_norm, k_norm)` are what the
    normalised channels are multiplied by, of one head or of all. `sinks[h]` adds a logit without a value to head h.

    The cache, an array of `cache_shape` and `cache_dtype`, is updated without a copy where the caller donates it and
    reads only the result. Scores and sums are float32, and a token's output has the same bits whatever other tokens
    there are, however its prompt was cut into calls, on any number of threads and any instruction set.

    Derivatives, in both modes, are with respect to q, k, v, rope, norms and sinks; rounding in the cache counts as the
    identity, what an earlier call wrote as constant, and the returned cache as constant too: its tangent is zero, so
    that nothing flows to a later call through it.

    Raises:
        ValueError: options and arrays do not belong together, or the cache is not one of this shape.
        jax.errors.JaxRuntimeError: a position or block lies outside; nothing is written then.
        RuntimeError: the native library cannot be used.
    """
    q, k, v = (x.astype(jnp.float32) for x in qkv)
    if q.shape[2] != k.shape[2] or v.shape != k.shape:
        raise ValueError(f"q must have the head_dim of k and v its shape, got {q.shape}, {k.shape} and {v.shape}")
    heads = (q.shape[1], k.shape[1], k.shape[2])
    check_attention(heads, cache, options, (rope is not None, norms is not None))
    call = _Call(options=options, instruction_set=int(instruction_set), threads=threads or 0)
    out, cache = _attend(call, (q, k, v, *filled_out(q.shape[0], rope, norms, sinks)), cache, tuple(batch))
    return out.astype(qkv[0].dtype), cache


def filled_out(
    tokens: int,
    rope: tuple[jax.Array, jax.Array] | None,
    norms: tuple[jax.Array, jax.Array] | None,
    sinks: jax.Array | None,
) -> tuple[jax.Array, ...]:
    """Cosines, sines, norms of q and k, and sinks in float32, without elements where there are none."""
    none = jnp.zeros((0,), jnp.float32)
    table = (jnp.zeros((tokens, 0), jnp.float32),) * 2 if rope is None else rope
    arrays = (*table, *((none, none) if norms is None else norms), none if sinks is None else sinks)
    return tuple(array.astype(jnp.float32) for array in arrays)


def rope_table(
    positions: Int32[Array, " tokens"], frequencies: Float32[Array, " pairs"], factor: float = 1.0
) -> tuple[Float32[Array, "tokens pairs"], Float32[Array, "tokens pairs"]]:
    """`factor * cos(a)` and `factor * sin(a)` for `a = positions[:, None] * frequencies[None, :]`.

    Computed in double precision and rounded once, so that a token's row has the same bits whatever other tokens there
    are.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    result = jax.ShapeDtypeStruct((*positions.shape, *frequencies.shape), jnp.float32)
    call = jax.ffi.ffi_call(target("realm_rope_table"), (result, result), vmap_method="sequential")
    cos, sin = call(positions, frequencies, factor=np.float64(factor))
    return cos, sin


def check_attention(
    heads: tuple[int, int, int], cache: jax.Array, options: AttentionOptions, given: tuple[bool, bool]
) -> None:
    """Raise unless heads of q and of k, their channels, options and cache belong together; the kernel checks the rest.

    `given`: whether there are a table of rotations, and norms.
    """
    for name, needed, is_given in zip(("rope", "norms"), (options.rope_style, options.norm), given, strict=True):
        if (needed is not None) != is_given:
            raise ValueError(f"{name} must be given exactly where the options ask for it, which say {needed}")
    q_heads, kv_heads, head_dim = heads
    if q_heads % kv_heads:
        raise ValueError(f"q must have a multiple of k's heads, got {q_heads} and {kv_heads}")
    expected = cache_shape(cache.shape[0], options.block_size, kv_heads, head_dim, cache_kind(cache.dtype))
    if cache.shape != expected:
        raise ValueError(f"a cache for {kv_heads} heads of {head_dim} must have shape {expected}, got {cache.shape}")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(
    call: _Call, floats: tuple[jax.Array, ...], cache: jax.Array, batch: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    q, k, v, *others = floats
    results = (jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct(cache.shape, cache.dtype))
    native = jax.ffi.ffi_call(
        target("realm_paged_attention"), results, vmap_method="sequential", input_output_aliases={0: 1}
    )
    own, numbers = attention_arguments(call.options, cache, batch, (q.shape[1], k.shape[1], k.shape[2]), tuple(others))
    out, cache = native(cache, batch[-1], *own, q, k, v, **settings(call.instruction_set, call.threads, *numbers))
    return out, cache


def attention_arguments(
    options: AttentionOptions,
    cache: jax.Array,
    batch: tuple[jax.Array, ...],
    heads: tuple[int, int, int],
    others: tuple[jax.Array, ...],
) -> tuple[list[jax.Array], list[int | float]]:
    """The arrays and the settings that `TakeAttention` of src/attention.cc takes, in its order.

    `heads`: those of q, those of k, their channels. `others` are cosines, sines, norms of q and k, and sinks; what is
    not there has no elements.
    """
    cos, sin, q_norm, k_norm, sinks = others
    arrays = list(batch[:-1])
    arrays += [] if options.rope_style is None else [cos, sin]
    arrays += [] if options.norm is None else [q_norm, k_norm]
    arrays += [sinks] if sinks.size else []
    return arrays, [
        CACHE_KINDS.index(cache_kind(cache.dtype)),
        options.block_size,
        *heads,
        cos.shape[-1],
        float(options.scale),
        _NO_WINDOW if options.window is None else options.window,
        math.inf if options.softcap is None else float(options.softcap),
        _ROPE_STYLES.index(options.rope_style),
        _NORMS.index(options.norm),
        float(options.norm_eps),
        sinks.size > 0,
    ]


@_attend.defjvp
def _attend_jvp(call: _Call, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    floats, cache, batch = primals
    out, new_cache = _attend(call, floats, cache, batch)
    # From the written cache: a reader of the old one would cost a copy of it.
    _, tangent = jax.jvp(
        lambda floats: reference_attention(floats, new_cache, batch, call.options), (floats,), (tangents[0],)
    )
    return (out, new_cache), (tangent, jax.custom_derivatives.zero_from_primal(new_cache))
