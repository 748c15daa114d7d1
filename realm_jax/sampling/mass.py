"""Exact probability mass: weights with 36 binary places, their sums over a vocabulary, and an inverse CDF.

A weight is a float32 in [0, 1], the probability of a token relative to the most probable one. Its value to 36 binary
places is two digits of 18 bits:

    weight = upper * 2**-18 + lower * 2**-36 + (less than 2**-36),    upper, lower in 0 .. 2**18

64 digits add up to at most 2**24, which float32 holds exactly; from there on sums are 64-bit integers (`wide`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from realm_jax.sampling import chunks, wide
from realm_jax.sampling.chunks import CHUNK
from realm_jax.sampling.wide import Wide

_DIGIT_BITS = 18
_DIGIT = float(1 << _DIGIT_BITS)

UNIT_WEIGHT = 2.0 ** (-2 * _DIGIT_BITS)
"""The weight whose mass is the integer 1."""


def _upper(weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.floor(weights * _DIGIT)


def _lower(weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.floor((weights * _DIGIT - _upper(weights)) * _DIGIT)


def _wide(upper: Float[Array, "*shape"], lower: Float[Array, "*shape"]) -> Wide:
    return wide.from_parts(upper.astype(jnp.uint32), lower.astype(jnp.uint32), _DIGIT_BITS)


def of(weights: Float[Array, "*shape"]) -> Wide:
    """The mass of each weight."""
    return _wide(_upper(weights), _lower(weights))


def _digit_sums(weights: Float[Array, "*lead padded"]) -> tuple[Float[Array, "*lead groups"], ...]:
    """The upper and the lower digits of each group of CHUNK weights, added up."""
    return chunks.group_sums(_upper(weights)), chunks.group_sums(_lower(weights))


def total(weights: Float[Array, "*lead padded"]) -> Wide:
    """The mass of all weights of a row, for rows of at most 2**22."""
    upper, lower = (digits.astype(jnp.int32) for digits in _digit_sums(weights))
    # Sums of 12 bits stay below 2**28; unlike a sum of Wide, XLA vectorises them.
    u1, u0, l1, l0 = (
        jnp.sum(part, -1).astype(jnp.uint32) for part in (upper >> 12, upper & 4095, lower >> 12, lower & 4095)
    )
    zero = jnp.zeros_like(u1)
    high = wide.from_parts(u1, zero, _DIGIT_BITS + 12)
    return wide.add(wide.add(high, wide.from_parts(l1, zero, 12)), wide.from_parts(u0, l0, _DIGIT_BITS))


def to_float(mass: Wide) -> Float[Array, "*lead"]:
    """A mass as float32, in units of the weight 1."""
    return (mass.high.astype(jnp.float32) * 2.0**32 + mass.low.astype(jnp.float32)) * UNIT_WEIGHT


class SumTree(NamedTuple):
    """Masses of groups, of groups of groups, and so on: `levels[i]` sums CHUNK members of the level before.

    Group i of a level with n groups holds the members i, i + n, i + 2n, ... of the level below.
    """

    weights: Float[Array, "*lead padded"]
    levels: tuple[Wide, ...]

    @property
    def total(self) -> Wide:
        """The mass of each row."""
        return wide.total(self.levels[-1])


def sum_tree(weights: Float[Array, "*lead padded"]) -> SumTree:
    """Sum each row of weights level by level, until at most CHUNK sums are left."""
    levels = [_wide(*_digit_sums(weights))]
    while levels[-1].low.shape[-1] > CHUNK:
        levels[-1] = _pad(levels[-1])
        levels.append(wide.total(Wide(*(jnp.swapaxes(chunks.group(part), -1, -2) for part in levels[-1]))))
    return SumTree(weights, tuple(levels))


def _pad(level: Wide) -> Wide:
    missing = -level.low.shape[-1] % CHUNK
    return Wide(*(jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, missing)]) for part in level))


def first_past(masses: Wide, target: Wide) -> tuple[Int[Array, "*lead"], Wide]:
    """Where the running sum of the last axis first exceeds `target`, and `target` less what comes before it.

    The position is the axis's length if the running sum stays at or below the target.
    """
    passed = ~wide.less(Wide(target.high[..., None], target.low[..., None]), wide.cumulative(masses))
    index = lax.reduce(passed.astype(jnp.int32), jnp.int32(0), lax.add, (passed.ndim - 1,))
    return index, wide.subtract(target, wide.total(wide.keep(masses, passed)))


def locate(tree: SumTree, target: Wide) -> Int[Array, "*lead"]:
    """The inverse CDF: the token whose share of the mass `target` falls in, for a target below the total.

    Tokens are laid end to end in the tree's order, a permutation that depends on the size of the vocabulary alone.
    """
    index, target = first_past(tree.levels[-1], target)
    for level in reversed(tree.levels[:-1]):
        index, target = _descend(Wide(*(_members(part, index) for part in level)), target, index, level.low.shape[-1])
    return _descend(of(_members(tree.weights, index)), target, index, tree.weights.shape[-1])[0]


def _members(level: Array, group: Int[Array, "*lead"]) -> Array:
    """The members of one group of each row, `[*lead, CHUNK]`."""
    return jnp.take_along_axis(chunks.group(level), group[..., None, None], axis=-1)[..., 0]


def _descend(members: Wide, target: Wide, group: Int[Array, "*lead"], size: int) -> tuple[Int[Array, "*lead"], Wide]:
    """From a group to the member that the target falls in, and what is left of the target there."""
    step, target = first_past(members, target)
    return jnp.minimum(step, CHUNK - 1) * (size // CHUNK) + group, target
