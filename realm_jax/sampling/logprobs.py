"""Log-probabilities of given tokens and of the most probable ones, from unmodified logits."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from realm_jax.sampling import chunks, mass


class TokenLogprobs(NamedTuple):
    """For each row: one token's log-probability and rank, and the most probable tokens, best first.

    Attributes:
        logprobs: natural logarithms of the tokens' probabilities.
        rank: 1 for the most probable token; among equals the lowest id comes first.
        top_ids: the most probable tokens.
        top_logprobs: their log-probabilities.
    """

    logprobs: Float[Array, " rows"]
    rank: Int[Array, " rows"]
    top_ids: Int[Array, "rows top"]
    top_logprobs: Float[Array, "rows top"]


def token_logprobs(logits: Float[Array, "rows vocab"], tokens: Int[Array, " rows"], count: int) -> TokenLogprobs:
    """`log_softmax(logits)` at each row's token and at its `min(count, vocab)` most probable tokens.

    For prompt_logprobs, rows are prompt positions and tokens are the tokens that follow them.
    """
    vocab = logits.shape[-1]
    logits = chunks.pad(logits.astype(jnp.float32), -jnp.inf)
    best = jnp.take_along_axis(logits, chunks.argmax(logits)[:, None], -1)
    normaliser = best + jnp.log(mass.to_float(mass.total(jnp.exp(logits - best))))[:, None]
    chosen = jnp.take_along_axis(logits, tokens[:, None], -1)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    ahead = (logits > chosen) | ((logits == chosen) & (ids < tokens[:, None]))
    top, top_ids = chunks.top_k(logits, min(count, vocab))
    rank = jnp.sum(ahead, -1, dtype=jnp.int32) + 1
    return TokenLogprobs((chosen - normaliser)[:, 0], rank, top_ids, top - normaliser)
