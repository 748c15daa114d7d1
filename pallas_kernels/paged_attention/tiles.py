"""How a ragged batch is cut into tiles: a few tokens of one sequence, which read its keys together."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of up to `size` tokens.

    `sequence[n]`; `first[n]`: the tile's first token; `count[n]`: its tokens, 0 for tiles that are left over;
    `start[n]`: the position of the first. All int32.
    """

    sequence: Any
    first: Any
    count: Any
    start: Any


def number_of_tiles(tokens: int, sequences: int, size: int) -> int:
    """As many as any batch of these sizes takes: each sequence may fill its last tile partly."""
    return (tokens + sequences * (size - 1)) // size


def cut(query_start: Int32[Array, " starts"], positions: Int32[Array, " tokens"], size: int) -> Tiles:
    """The tiles of each sequence in turn; tokens of a sequence have consecutive positions."""
    tokens, sequences = positions.shape[0], query_start.shape[0] - 1
    count = number_of_tiles(tokens, sequences, size)
    begins, ends = _spans(query_start, size)
    index = jnp.arange(count, dtype=jnp.int32)
    # Compared with all of them: a binary search is a loop of small programs on a GPU.
    sequence = jnp.minimum(jnp.sum(ends[None] <= index[:, None], axis=1, dtype=jnp.int32), sequences - 1)
    first = query_start[sequence] + (index - begins[sequence]) * size
    own = jnp.clip(query_start[sequence + 1] - first, 0, size)
    first = jnp.minimum(first, tokens - 1)
    return Tiles(sequence=sequence, first=first, count=own, start=positions[first])


def tile_of_token(
    query_start: Int32[Array, " starts"], tokens: int, size: int
) -> tuple[Int32[Array, " tokens"], Int32[Array, " tokens"]]:
    """Which tile each token lies in, and at which place of it; for padding, some tile."""
    begins, _ = _spans(query_start, size)
    index = jnp.arange(tokens, dtype=jnp.int32)
    owner = jnp.sum(query_start[None, 1:] <= index[:, None], axis=1, dtype=jnp.int32)
    owner = jnp.minimum(owner, query_start.shape[0] - 2)
    offset = index - query_start[owner]
    last = number_of_tiles(tokens, query_start.shape[0] - 1, size) - 1
    return jnp.minimum(begins[owner] + offset // size, last), offset % size


def _spans(query_start: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The first tile of each sequence, and the one behind its last."""
    tiles = -(-jnp.diff(query_start) // size)
    ends = jnp.cumsum(tiles, dtype=jnp.int32)
    return ends - tiles, ends
