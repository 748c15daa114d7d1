"""The changes to a batch of logits that precede drawing: bias and bans, callers' functions, penalties."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from realm_jax.sampling.batch import SamplingBatch
from realm_jax.sampling.mask import forbid
from realm_jax.sampling.plan import ProcessorChain, SamplingPlan


class TokenHistory(NamedTuple):
    """The tokens of one request so far, as a logits processor sees them.

    `tokens[:prompt_length]` is the prompt and `tokens[prompt_length:length]` the output. The array is padded with
    zeros to one of few sizes, so a processor masks with `in_output` or `present` instead of slicing.
    """

    tokens: Int[Array, " history"]
    prompt_length: Int[Array, ""]
    length: Int[Array, ""]

    @property
    def present(self) -> Bool[Array, " history"]:
        """Which places hold a token."""
        return jnp.arange(self.tokens.shape[-1]) < self.length

    @property
    def in_output(self) -> Bool[Array, " history"]:
        """Which places hold a generated token."""
        return self.present & (jnp.arange(self.tokens.shape[-1]) >= self.prompt_length)


def process(
    logits: Float[Array, "batch vocab"], batch: SamplingBatch, plan: SamplingPlan
) -> Float[Array, "batch vocab"]:
    """Apply to each row what its request asks for: bias and bans, then its processors, then its penalties."""
    if plan.logit_bias:
        over = batch.step[:, None] >= batch.bias_until
        ids = jnp.where(over, logits.shape[-1], batch.bias_ids)
        logits = jax.vmap(_add_bias)(logits, ids, batch.bias_values)
    if not plan.history:
        return logits
    history = TokenHistory(batch.history, batch.prompt_length, batch.length)
    for number, chain in enumerate(plan.processors, start=1):
        changed = jax.vmap(lambda history, logits, chain=chain: _run(chain, history, logits))(history, logits)
        logits = jnp.where((batch.chain == number)[:, None], changed, logits)
    if plan.masked and plan.processors:  # which may have given a forbidden token a logit
        logits = forbid(logits, batch.mask)
    if plan.penalties:
        penalties = (batch.repetition_penalty, batch.presence_penalty, batch.frequency_penalty)
        logits = jax.vmap(_penalise)(logits, history, *penalties)
    return logits


def _add_bias(
    logits: Float[Array, " vocab"], ids: Int[Array, " bias"], values: Float[Array, " bias"]
) -> Float[Array, " vocab"]:
    return logits.at[ids].add(values, mode="drop")


def _run(chain: ProcessorChain, history: TokenHistory, logits: Float[Array, " vocab"]) -> Float[Array, " vocab"]:
    for function in chain:
        result = function(history, logits)
        if result.shape != logits.shape:
            name = getattr(function, "__name__", repr(function))
            raise ValueError(
                f"a logits processor must return logits of shape {logits.shape}, {name} returned {result.shape}; "
                "change the logits it was given"
            )
        logits = result.astype(jnp.float32)
    return logits


def _penalise(
    logits: Float[Array, " vocab"],
    history: TokenHistory,
    repetition: Float[Array, ""],
    presence: Float[Array, ""],
    frequency: Float[Array, ""],
) -> Float[Array, " vocab"]:
    """The formulas of vLLM, for each token of the history, with c its number of occurrences in the output:

    l <- l / repetition if l > 0 else l * repetition
    l <- l - frequency * c - presence * (c > 0)
    """
    vocab = logits.shape[-1]
    tokens = jnp.where(history.present, history.tokens, vocab)
    counts = jnp.zeros(vocab, jnp.int32).at[tokens].add(history.in_output.astype(jnp.int32), mode="drop")
    count = counts.at[tokens].get(mode="clip")
    value = logits.at[tokens].get(mode="clip")
    value = jnp.where(value > 0, value / repetition, value * repetition)
    value = value - frequency * count - presence * (count > 0)
    # A token that occurs twice is written twice, with the same value.
    return logits.at[tokens].set(value, mode="drop")
