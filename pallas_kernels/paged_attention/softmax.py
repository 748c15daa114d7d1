"""What the kernels' online softmax has in common: how scores are counted, hidden and capped."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.config import AttentionOptions

LOG2E = math.log2(math.e)
"""Scores count in powers of two, which the hardware has."""

# What hides a score, and where maxima begin: 2 to the power of their difference is zero, so that no weight of a hidden
# score has to be cleared, not even in a row that has seen nothing yet.
HIDDEN, BEGIN = -1e30, -1e20


def visible_trips(start: jax.Array, count: jax.Array, keys: int, window: int | None) -> tuple[jax.Array, jax.Array]:
    """The first trip of `keys` positions that tokens at `start` to `start + count` see any of, and the one behind."""
    begin = jnp.int32(0) if window is None else jnp.maximum(start - (window - 1), 0) // keys
    return begin, jnp.where(count > 0, (start + count - 1) // keys + 1, begin)


def capped(scores: jax.Array, options: AttentionOptions) -> jax.Array:
    """Scores from products of q and k, in powers of two."""
    if options.softcap is None:
        return scores * (options.scale * LOG2E)
    return jnp.tanh(scores * (options.scale / options.softcap)) * (options.softcap * LOG2E)


def operand_dtype(q: Any, pool: Any) -> Any:
    """What products multiply: both arrays' own type, else float32, on tensor cores rounded to 10 bits of mantissa.

    Codes of 8 bits are exact in bfloat16. In float16 they are too, but weights times scales may underflow there.
    """
    exact = pool == jnp.int8 and q == jnp.bfloat16
    return q if q == pool or exact else jnp.dtype(jnp.float32)
