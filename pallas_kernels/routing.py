"""Which row each token takes among those of its weights' owner, an expert or adapter, and how rows fill blocks."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32


def block_rows(choices: int, owners: int, *, least: int = 8, most: int = 128) -> int:
    """The power of two that holds what an owner has on average, of `choices` by all tokens; from `least` to `most`.

    Rows that a block does not fill cost products of zeros; an owner of several blocks is read and decoded for each.
    """
    average = max(math.ceil(choices / owners), 1)
    return min(max(1 << (average - 1).bit_length(), least), most)


def number_of_blocks(choices: int, owners: int, block: int) -> int:
    """As many as any routing takes: each owner that a token chooses may fill its last block partly."""
    return (choices + min(choices, owners) * (block - 1)) // block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """`owners int32[blocks]`: whose rows each block holds; `used int32[]`: how many of them, the first ones, hold any.

    Owners of blocks that are left over are any.
    """

    owners: Any
    used: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """Each choice's row and weight, a token's choices in the order of owners; `blocks`: whose rows there are.

    `place int32[tokens, choices]`, the number of rows where there is no choice; `weights float[tokens, choices]`, zero
    there. `source int32[rows]`: each row's token, or the number of tokens where there is none.
    """

    place: Any
    weights: Any
    source: Any
    blocks: Blocks


def route(weights: Float[Array, "tokens owners"], *, most: int, block: int) -> Routing:
    """Blocks of `block` rows for the owners whose weights are not zero, `most` of a token's at most.

    Rows of an owner follow each other in the tokens' order. Nothing is sorted: an owner's blocks begin where those
    before it end, and a token's row in them is the number of tokens before it that chose the same.
    """
    tokens, count = weights.shape
    blocks = number_of_blocks(tokens * most, count, block)
    names = jnp.arange(count, dtype=jnp.int32)
    real = weights != 0
    chosen = real.astype(jnp.int32)
    taken = -(-jnp.sum(chosen, axis=0, dtype=jnp.int32) // block)
    # Compared with all of them: on a GPU a sum of what came before, or a binary search, is several small programs.
    begins = jnp.sum(jnp.where(names[None] < names[:, None], taken[None], 0), axis=1, dtype=jnp.int32)
    row = begins[None] * block + jnp.cumsum(chosen, axis=0, dtype=jnp.int32) - chosen
    rank = jnp.cumsum(chosen, axis=1, dtype=jnp.int32) - chosen
    # Of each token: which of its choices each owner is.
    hit = real[:, None] & (rank[:, None] == jnp.arange(most, dtype=jnp.int32)[None, :, None])
    place = jnp.where(jnp.any(hit, axis=-1), jnp.sum(jnp.where(hit, row[:, None], 0), axis=-1), blocks * block)
    token = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], place.shape)
    source = jnp.full(blocks * block, tokens, jnp.int32).at[place].set(token, mode="drop", unique_indices=True)
    owner = jnp.sum((begins + taken)[None] <= jnp.arange(blocks, dtype=jnp.int32)[:, None], axis=1, dtype=jnp.int32)
    return Routing(
        place=place,
        weights=jnp.sum(jnp.where(hit, weights[:, None], 0), axis=-1),
        source=source,
        blocks=Blocks(owners=jnp.minimum(owner, count - 1), used=jnp.sum(taken)),
    )


def route_one(ids: Int32[Array, " tokens"], owners: int, *, block: int) -> Routing:
    """The same where each token has the owner that its id names, or none for an id outside of `[0, owners)`."""
    chosen = ids[:, None] == jnp.arange(owners, dtype=jnp.int32)[None]
    return route(chosen.astype(jnp.float32), most=1, block=block)


def gather(x: Float[Array, "tokens columns"], routing: Routing) -> Float[Array, "rows columns"]:
    """The tokens in the order of `routing`, zero in rows of no token."""
    return jnp.take(x, routing.source, axis=0, mode="fill", fill_value=0)


def combine(y: Float[Array, "rows columns"], routing: Routing) -> Float32[Array, "tokens columns"]:
    """`sum_c weights[:, c] y[place[:, c]]` in float32, one choice after the other."""

    def term(c: int) -> jax.Array:
        own = jnp.take(y, routing.place[:, c], axis=0, mode="fill", fill_value=0)
        return routing.weights[:, c, None].astype(jnp.float32) * own.astype(jnp.float32)

    return functools.reduce(jnp.add, (term(c) for c in range(routing.place.shape[1])))
