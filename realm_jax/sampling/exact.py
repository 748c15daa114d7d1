"""Drawing from all tokens of the requests that need it, one after another, by bisection instead of a sort."""

import enum

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from realm_jax.sampling import chunks, descending, mass, wide
from realm_jax.sampling.rows import Rows


class _Stage(enum.IntEnum):
    """Each stage finds one token in an order and drops what comes after it. The last one finds the drawn token."""

    TYPICAL_P = 0
    TOP_K = 1
    TOP_P = 2
    DRAW = 3


def draw(
    rows: Rows, needed: Bool[Array, " batch"], tokens: Int[Array, " batch"], *, typical: bool
) -> Int[Array, " batch"]:
    """`tokens` with those of the needed requests replaced by exact draws, in time proportional to their number.

    `typical` says whether typical_p is looked at; it is static.
    """

    def replace(state: tuple[Array, Array]) -> tuple[Array, Array]:
        needed, tokens = state
        row = jnp.argmax(needed)
        one = jax.tree.map(lambda column: lax.dynamic_index_in_dim(column, row, keepdims=False), rows)
        return needed.at[row].set(False), tokens.at[row].set(_draw_row(one, typical))

    def replace_all(tokens: Int[Array, " batch"]) -> Int[Array, " batch"]:
        return lax.while_loop(lambda state: jnp.any(state[0]), replace, (needed, tokens))[1]

    # The conditional keeps XLA from moving the draw of the only row out of the loop, where it would always run.
    return lax.cond(jnp.any(needed), replace_all, lambda tokens: tokens, tokens)


def _draw_row(row: Rows, typical: bool) -> Int[Array, ""]:
    """One request: typical_p, top_k and top_p in turn leave fewer tokens with a weight, then one is drawn.

    The stages are a loop so that the bisection is compiled once.
    """
    logit_keys = descending.sort_key(row.logits)
    settings = jnp.stack([row.typical_p, row.top_k, row.top_p, row.uniform])
    active = settings.at[_Stage.DRAW].set(1) > 0

    def run(stage: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        weights, _ = state
        keys = logit_keys
        if typical:
            keys = lax.cond(stage == _Stage.TYPICAL_P, _typical_keys, lambda row, weights: logit_keys, row, weights)
        # A dropped token goes to the end of the order.
        keys = jnp.where(weights > 0, keys, 0)
        by_count = stage == _Stage.TOP_K
        measure = jnp.where(by_count, mass.UNIT_WEIGHT, weights)
        share = wide.scale(mass.total(weights), settings[stage])
        last = jnp.minimum(row.top_k, keys.shape[-1]) - 1
        target = wide.where(by_count, wide.Wide(jnp.zeros_like(last), last), share)
        cut = descending.find(keys, measure, target)
        return descending.keep(weights, descending.before(cut, keys)), cut.token

    def run_active(stage: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.cond(active[stage], run, lambda stage, state: state, stage, state)

    first = _Stage.TYPICAL_P if typical else _Stage.TOP_K
    return lax.fori_loop(first, len(_Stage), run_active, (row.tree.weights, jnp.zeros((), jnp.int32)))[1]


def _typical_keys(row: Rows, weights: Float[Array, " padded"]) -> UInt32[Array, " padded"]:
    """Keys that order tokens by |s - H|, smallest first, with surprise s = -log q and entropy H = sum(q s).

    Surprises are taken relative to that of the most probable token, a constant that cancels in the difference.
    """
    surprise = (row.logits.max() - row.logits) * row.inverse_temperature
    weighted = jnp.where(weights > 0, weights * surprise, 0.0)
    entropy = jnp.sum(chunks.split(weighted).sum(-1)) / mass.to_float(mass.total(weights))
    return descending.sort_key(-jnp.abs(surprise - entropy))
