"""Drawing from the most probable tokens alone, wherever they provably decide what a draw from all tokens gives."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from realm_jax.sampling import chunks, mass, wide
from realm_jax.sampling.rows import Rows
from realm_jax.sampling.wide import Wide


def draw(rows: Rows, count: int) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """The token of each request that filters by rank, and whether the `count` candidates decide it.

    Where the mass M of the kept tokens is known, the draw falls at mass `floor(M * uniform)`, and is decided if the
    candidates reach that far. Where top_p keeps tokens beyond the candidates, M lies between the mass that top_p asks
    for and one token more; the draw is decided if both bounds give one candidate. So candidates often decide even
    where they do not contain the nucleus.
    """
    _, tokens = chunks.top_k(rows.logits, count)
    masses = mass.of(jnp.take_along_axis(rows.tree.weights, tokens, -1))
    ends = wide.cumulative(masses)
    before_top_p, known = _mass_after_top_k(rows, ends)
    least, most = _mass_bounds(rows, masses, ends, before_top_p)
    first, _ = mass.first_past(masses, wide.scale(least, rows.uniform))
    last, _ = mass.first_past(masses, wide.scale(most, rows.uniform))
    place = jnp.minimum(first, count - 1)
    token = jnp.take_along_axis(tokens, place[:, None], -1)[:, 0]
    return token, known & (first == last) & (first < count)


def _at(masses: Wide, place: Int[Array, " batch"]) -> Wide:
    return Wide(*(jnp.take_along_axis(part, place[:, None], -1)[:, 0] for part in masses))


def _mass_after_top_k(rows: Rows, ends: Wide) -> tuple[Wide, Bool[Array, " batch"]]:
    """The mass that top_k keeps, and whether it is known: a large top_k may reach beyond the candidates."""
    count = ends.low.shape[-1]
    kept = jnp.where(rows.top_k == 0, count, jnp.minimum(rows.top_k, count)).astype(jnp.int32)
    candidates_only = (rows.top_k > 0) & (rows.top_k <= count)
    total = rows.tree.total
    every_weight_is_here = wide.equal(Wide(ends.high[:, -1], ends.low[:, -1]), total)
    known = (rows.top_k <= count) | every_weight_is_here
    return wide.where(candidates_only, _at(ends, kept - 1), total), known


def _mass_bounds(rows: Rows, masses: Wide, ends: Wide, available: Wide) -> tuple[Wide, Wide]:
    """The least and the most mass that top_p can leave of what is available; equal where it is known."""
    count = ends.low.shape[-1]
    asked = wide.scale(available, rows.top_p)
    cut, _ = mass.first_past(masses, asked)
    exact = _at(ends, jnp.minimum(cut, count - 1))
    exact = wide.where(rows.top_p == 0, available, exact)
    known = (rows.top_p == 0) | (cut < count)
    one = Wide(jnp.zeros_like(asked.high), jnp.ones_like(asked.low))
    lightest = Wide(masses.high[:, -1], masses.low[:, -1])
    # A token beyond the candidates weighs no more than the last of them but for rounding; twice it is ample.
    ample = wide.add(wide.add(wide.add(lightest, lightest), one), wide.add(asked, one))
    least = wide.where(known, exact, wide.add(asked, one))
    return least, wide.where(known, exact, wide.minimum(ample, available))
