"""Unsigned 64-bit integers as pairs of uint32, so that sums of probabilities are exact in any order.

Integer addition is associative: a sum over a vocabulary has one value whatever the backend, the batch size or the
order of the additions, which a float32 sum has not. Nothing here needs jax_enable_x64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, UInt32

_HALF_BITS = 16
_HALF_MASK = (1 << _HALF_BITS) - 1


class Wide(NamedTuple):
    """The integers `high * 2**32 + low`, elementwise; both parts have one shape."""

    high: UInt32[Array, "*shape"]
    low: UInt32[Array, "*shape"]


def add(a: Wide, b: Wide) -> Wide:
    """`a + b` modulo 2**64."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Wide, b: Wide) -> Wide:
    """`a - b`, for `a >= b`."""
    return Wide(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def less(a: Wide, b: Wide) -> Bool[Array, "*shape"]:
    """`a < b`."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def equal(a: Wide, b: Wide) -> Bool[Array, "*shape"]:
    """`a == b`."""
    return (a.high == b.high) & (a.low == b.low)


def where(condition: Bool[Array, "*shape"], a: Wide, b: Wide) -> Wide:
    """`a` where the condition holds, else `b`."""
    return Wide(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def minimum(a: Wide, b: Wide) -> Wide:
    """The smaller of `a` and `b`."""
    return where(less(a, b), a, b)


def from_parts(upper: UInt32[Array, "*shape"], lower: UInt32[Array, "*shape"], shift: int) -> Wide:
    """`upper * 2**shift + lower` for `0 < shift < 32`."""
    return add(Wide(upper >> (32 - shift), upper << shift), Wide(jnp.zeros_like(lower), lower))


def total(a: Wide) -> Wide:
    """The sum over the last axis, modulo 2**64."""
    zero = jnp.zeros((), jnp.uint32)
    return Wide(*lax.reduce(tuple(a), (zero, zero), lambda a, b: tuple(add(Wide(*a), Wide(*b))), (a.low.ndim - 1,)))


def keep(a: Wide, condition: Bool[Array, "*shape"]) -> Wide:
    """`a` where the condition holds, else 0."""
    zero = jnp.zeros((), jnp.uint32)
    return Wide(jnp.where(condition, a.high, zero), jnp.where(condition, a.low, zero))


def cumulative(a: Wide) -> Wide:
    """The running sum over the last axis, which is short: each sum is formed on its own, in one small loop."""
    length = a.low.shape[-1]
    upto = jnp.tril(jnp.ones((length, length), bool)).reshape(*(1,) * (a.low.ndim - 1), length, length)
    return total(keep(Wide(a.high[..., None, :], a.low[..., None, :]), upto))


def product(a: UInt32[Array, "*shape"], b: UInt32[Array, "*shape"]) -> Wide:
    """The exact `a * b`."""
    a1, a0 = a >> _HALF_BITS, a & _HALF_MASK
    b1, b0 = b >> _HALF_BITS, b & _HALF_MASK
    inner = add(from_parts(a1 * b0, a0 * b0, _HALF_BITS), from_parts(a0 * b1, jnp.zeros_like(a), _HALF_BITS))
    return add(inner, Wide(a1 * b1, jnp.zeros_like(a)))


def scale(a: Wide, fraction: UInt32[Array, "*shape"]) -> Wide:
    """`floor(a * fraction / 2**32)`: `a` times a number in [0, 1) with 32 binary places."""
    carried = product(a.low, fraction).high
    return add(product(a.high, fraction), Wide(jnp.zeros_like(carried), carried))
