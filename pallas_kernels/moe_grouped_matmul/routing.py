"""Which row of which block each token's choices take: the rows of an expert follow each other, in the tokens' order."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from pallas_kernels.moe_grouped_matmul.config import number_of_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """`experts int32[blocks]`: whose rows each block holds; `used int32[]`: how many of them, the first ones, hold any.

    Experts of blocks that are left over are any.
    """

    experts: Any
    used: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """`source int32[rows]`: each row's token, or the number of tokens where there is none; `blocks`: whose rows.

    `place int32[tokens, choices]`: each choice's row, or the number of rows where there is no choice.
    """

    source: Any
    place: Any
    blocks: Blocks


def route(
    experts: Int32[Array, "tokens choices"], real: Bool[Array, "tokens choices"], *, count: int, block: int
) -> Routing:
    """Blocks of `block` rows for the choices that are `real`, of `count` experts; those of a token are different ones.

    Nothing is sorted: an expert's blocks begin where those before it end, and a token's row in them is the number of
    tokens before it that chose the same.
    """
    tokens, choices = experts.shape
    blocks = number_of_blocks(tokens * choices, count, block)
    names = jnp.arange(count, dtype=jnp.int32)
    chosen = jnp.any((experts[:, :, None] == names[None, None]) & real[:, :, None], axis=1).astype(jnp.int32)
    before = jnp.cumsum(chosen, axis=0, dtype=jnp.int32) - chosen
    taken = -(-jnp.sum(chosen, axis=0, dtype=jnp.int32) // block)
    # Compared with all of them: on a GPU a sum of what came before, or a binary search, is several small programs.
    begins = jnp.sum(jnp.where(names[None] < names[:, None], taken[None], 0), axis=1, dtype=jnp.int32)
    ends = begins + taken
    index = jnp.arange(blocks, dtype=jnp.int32)
    owner = jnp.sum(ends[None] <= index[:, None], axis=1, dtype=jnp.int32)
    place = begins[experts] * block + jnp.take_along_axis(before, experts, axis=1)
    place = jnp.where(real, place, blocks * block)
    token = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], place.shape)
    source = jnp.full(blocks * block, tokens, jnp.int32).at[place].set(token, mode="drop", unique_indices=True)
    return Routing(
        source=source, place=place, blocks=Blocks(experts=jnp.minimum(owner, count - 1), used=jnp.sum(taken))
    )


def gather(x: Float[Array, "tokens columns"], routing: Routing) -> Float[Array, "rows columns"]:
    """The tokens in the order of `routing`, zero in rows of no token."""
    return jnp.take(x, routing.source, axis=0, mode="fill", fill_value=0)


def combine(
    y: Float[Array, "rows columns"], weights: Float32[Array, "tokens choices"], routing: Routing
) -> Float32[Array, "tokens columns"]:
    """`sum_c weights[:, c] y[place[:, c]]` in float32, one choice after the other."""

    def term(c: int) -> jax.Array:
        own = jnp.take(y, routing.place[:, c], axis=0, mode="fill", fill_value=0)
        return weights[:, c, None] * own.astype(jnp.float32)

    return functools.reduce(jnp.add, (term(c) for c in range(weights.shape[1])))
