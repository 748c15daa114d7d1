"""Rows of activations in 8 bits: whole numbers, and a float32 scale for each group of a row's columns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

MOST = 127
# A 127th of it is still a normal float32: below that XLA may take a scale for zero.
_SMALLEST = 2.0**-119


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedRows:
    """`x[t, c] ~ scales[g, t] codes[t, c]` for columns c of group g; `sums` are those of the right side in a group."""

    codes: Int8[Array, "tokens columns"]
    scales: Float32[Array, "groups tokens"]
    sums: Float32[Array, "groups tokens"]


def round_rows(x: Float[Array, "tokens columns"], group: int) -> RoundedRows:
    """Round each group of columns to `d q` with `d = max |x| / 127` and q the nearest whole number, ties to even.

    What is rounded away is at most `d / 2`, and some units in the last place. A group below 2^-119 counts as zero; one
    with a value that is not finite gets the scale NaN, which makes its row's products NaN.
    """
    grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, group)
    largest = jnp.max(jnp.abs(grouped), axis=-1)
    finite, used = jnp.isfinite(largest), largest >= _SMALLEST
    inverse = jnp.where(used & finite, MOST / largest, 0.0)
    codes = jnp.where(finite[..., None], jnp.round(grouped * inverse[..., None]), 0.0)
    scales = jnp.where(finite, jnp.where(used, largest / MOST, 0.0), jnp.nan)
    sums = scales * jnp.sum(codes, axis=-1)
    return RoundedRows(codes=codes.astype(jnp.int8).reshape(x.shape), scales=scales.T, sums=sums.T)
