"""Drawing one token a row from processed logits: temperature, min_p, typical_p, top_k, top_p, one uniform number.

The order in which a row's inverse CDF runs is a property of the row: by token id if no filter depends on rank, else by
descending logit (lowest id first among equals). Masses are exact integers. So a row's token depends on its logits,
parameters, seed and step only: not on the mode, not on the number of candidates, not on the rest of the batch.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from realm_jax.sampling import candidates, chunks, exact, mass, wide
from realm_jax.sampling.batch import SamplingBatch
from realm_jax.sampling.plan import SamplingMode, SamplingPlan
from realm_jax.sampling.rows import Rows


def choose(
    logits: Float[Array, "batch vocab"],
    batch: SamplingBatch,
    plan: SamplingPlan,
    *,
    implementation: str | None = None,
) -> Int[Array, " batch"]:
    """The next token of each request, from logits that bias, processors and penalties have already changed.

    A request whose logits are all -inf gets token 0; its distribution is undefined.
    """
    if plan.mode == SamplingMode.GREEDY:
        return chunks.argmax(logits, implementation=implementation)
    padded = chunks.pad(logits, -jnp.inf)
    best = chunks.argmax(padded)  # in XLA, which shares the passes over the logits with the steps below
    top = jnp.take_along_axis(padded, best[:, None], -1)
    random = (batch.inverse_temperature > 0) & (top[:, 0] > -jnp.inf)
    rows = _rows(padded, top, batch)
    tokens = mass.locate(rows.tree, wide.scale(rows.tree.total, rows.uniform))
    if plan.filters:
        tokens = _draw_filtered(rows, random, tokens, plan, logits.shape[-1])
    return jnp.where(random, tokens, best)


def uniform_bits(seed: UInt32[Array, "batch 2"], step: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """One uniform 32-bit number a request: the first word of `jax.random.fold_in(key(seed), step)`.

    The folded key is one threefry block of (seed, step). It is used for nothing else, so it serves as the random
    number itself. The implementation is named, so that jax_default_prng_impl cannot change what a seed means.
    """

    def one(seed: UInt32[Array, "2"], step: UInt32[Array, ""]) -> UInt32[Array, ""]:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(key, step))[0]

    return jax.vmap(one)(seed, step)


def _rows(logits: Float[Array, "batch padded"], top: Float[Array, "batch 1"], batch: SamplingBatch) -> Rows:
    """Weights relative to the most probable token, so that min_p is a bound on the logits: a prefix of their order."""
    # The difference of two infinities is not a number, but the largest logit may be one.
    scaled = jnp.where(logits == top, 0.0, logits - top) * batch.inverse_temperature[:, None]
    kept = jnp.where(scaled >= batch.log_min_p[:, None], scaled, -jnp.inf)
    # Everything downstream reads these very numbers: recomputed in another loop, exp could round differently.
    tree = mass.sum_tree(lax.optimization_barrier(jnp.exp(kept)))
    uniform = uniform_bits(batch.seed, batch.step)
    return Rows(logits, tree, batch.inverse_temperature, uniform, batch.top_k, batch.top_p, batch.typical_p)


def _draw_filtered(
    rows: Rows, random: Bool[Array, " batch"], tokens: Int[Array, " batch"], plan: SamplingPlan, vocab: int
) -> Int[Array, " batch"]:
    """Replace the tokens of the random requests that filter by rank."""
    typical = rows.typical_p > 0
    needed = random & ((rows.top_k > 0) | (rows.top_p > 0) | typical)
    if plan.mode == SamplingMode.CANDIDATES:
        drawn, decided = candidates.draw(rows, min(plan.candidates, vocab))
        decided = needed & decided & ~typical
        tokens = jnp.where(decided, drawn, tokens)
        needed = needed & ~decided
    return exact.draw(rows, needed, tokens, typical=plan.typical)
