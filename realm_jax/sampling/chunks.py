"""Passes over a vocabulary in two stages, first over small pieces of it, in the forms that XLA's CPU backend runs fast.

XLA's own argmax and top_k over 262,144 logits take 1.3 ms and 0.4-10 ms on one CPU core. A maximum vectorises, so
looking at 64-element chunks first takes 0.1 ms and 0.1-0.4 ms, with the same result, ties included.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

import cpu_kernels
from realm_jax.ops.backends import instruction_set_of, is_native

CHUNK = 64
"""Elements of a chunk. Every vocabulary axis in this package is padded to a multiple of it."""


def pad(x: Float[Array, "*lead vocab"], fill: float) -> Float[Array, "*lead padded"]:
    """`x` with its last axis extended by `fill` to a multiple of `CHUNK`; `x` itself where nothing is missing."""
    missing = -x.shape[-1] % CHUNK
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=fill) if missing else x


def split(x: Array) -> Array:
    """`[*lead, padded] -> [*lead, padded / CHUNK, CHUNK]`."""
    return x.reshape(*x.shape[:-1], -1, CHUNK)


def take(chunks: Array, index: Int[Array, "*lead"]) -> Array:
    """Chunk number `index` of each row: `[*lead, n, CHUNK] -> [*lead, CHUNK]`."""
    return jnp.take_along_axis(chunks, index[..., None, None], axis=-2)[..., 0, :]


def argmax(x: Float[Array, "*lead vocab"], *, implementation: str | None = None) -> Int[Array, "*lead"]:
    """`jnp.argmax(x, -1)`: the position of the largest element, the lowest one among equals.

    Every `implementation` finds the same among numbers; native ones read x once, on all cores.
    """
    if is_native(implementation):
        return cpu_kernels.argmax(x, instruction_set=instruction_set_of(implementation))
    if x.shape[-1] <= CHUNK:
        return jnp.argmax(x, -1).astype(jnp.int32)
    chunks = split(pad(x, -jnp.inf))
    chunk = argmax(chunks.max(-1))
    return chunk * CHUNK + jnp.argmax(take(chunks, chunk), -1).astype(jnp.int32)


def top_k(x: Float[Array, "*lead padded"], k: int) -> tuple[Float[Array, "*lead k"], Int[Array, "*lead k"]]:
    """The k largest elements in descending order and their positions, the lowest first among equals (-0 equals +0).

    Exact: an element of a chunk that is not among the k chunks of largest maximum (lowest chunk first in a tie) has
    k elements before it. The chosen chunks are put back in order of position, so that ties resolve as in `x`.
    """
    if x.shape[-1] <= 2 * CHUNK * k:
        values, place = lax.top_k(one_zero(x), k)
        return values, place
    chunks = split(x)
    chosen = jnp.sort(lax.top_k(one_zero(chunks.max(-1)), k)[1], -1)
    kept = jnp.take_along_axis(chunks, chosen[..., None], axis=-2)
    values, place = lax.top_k(one_zero(kept.reshape(*kept.shape[:-2], k * CHUNK)), k)
    return values, jnp.take_along_axis(chosen, place // CHUNK, axis=-1) * CHUNK + place % CHUNK


def one_zero(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x with -0 replaced by +0, which lax.top_k and the order of bits would place differently."""
    return jnp.where(x == 0, 0.0, x)


def group(x: Array) -> Array:
    """`[*lead, padded] -> [*lead, CHUNK, padded / CHUNK]`: column i holds the members of group i, far apart in x."""
    return x.reshape(*x.shape[:-1], CHUNK, -1)


def group_sums(x: Array) -> Array:
    """The sum of each group of CHUNK elements, `[*lead, padded / CHUNK]`, as a tree of elementwise additions.

    XLA's CPU backend vectorises these and spreads them over cores, but not a reduction with anything fused into it:
    that takes five times as long.
    """
    x = group(x)
    while x.shape[-2] > 1:
        half = x.shape[-2] // 2
        x = x[..., :half, :] + x[..., half:, :]
    return x[..., 0, :]
