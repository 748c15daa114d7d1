"""sample: one step's logits to the next tokens and their log-probabilities, inside the caller's jit."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from realm_jax.sampling.batch import SamplingBatch
from realm_jax.sampling.draw import choose
from realm_jax.sampling.logprobs import token_logprobs
from realm_jax.sampling.mask import forbid, mask_words
from realm_jax.sampling.plan import SamplingPlan
from realm_jax.sampling.processors import process


class SampleOutput(NamedTuple):
    """The chosen tokens; what follows them is None where the plan reports no log-probabilities.

    Attributes:
        tokens: the chosen token ids, or a row's target.
        logprobs: their log-probabilities in the model's distribution over the tokens that may come.
        top_ids: the plan's number of most probable tokens, best first.
        top_logprobs: their log-probabilities.
        rank: the chosen token's place in that order, from 1.
    """

    tokens: Int[Array, " batch"]
    logprobs: Float[Array, " batch"] | None
    top_ids: Int[Array, "batch top"] | None
    top_logprobs: Float[Array, "batch top"] | None
    rank: Int[Array, " batch"] | None


def sample(
    logits: Float[Array, "batch vocab"],
    batch: SamplingBatch,
    plan: SamplingPlan,
    *,
    implementation: str | None = None,
) -> SampleOutput:
    """Choose the next token of each request. The steps, in vLLM's order:

    1. tokens that the request's mask forbids get -inf;
    2. log-probabilities to report are those of what is left, as the model gives it: a forbidden token has -inf;
    3. bans until min_tokens, logit_bias, logits_processors;
    4. repetition penalty over prompt and output, then frequency and presence penalties over the output;
    5. greedy requests take the largest logit, the lowest id among equals;
    6. for the others: temperature, min_p, typical_p (which vLLM lacks), top_k, top_p, each on what the last one left,
       then the inverse CDF at one uniform number that depends on the request's seed and step alone.

    A request's token does not depend on the other requests, on the batch size or on the plan's mode.

    Args:
        logits: any float dtype; computed on in float32.
        batch: from `pack`, with the same plan.
        plan: static.
        implementation: what searches for the largest logit in greedy mode, as in `ops`; it changes no token.

    Raises:
        ValueError: the batch was packed with a plan of other parts, or its rows are not those of the logits.
    """
    _check(logits, batch, plan)
    logits = logits.astype(jnp.float32)
    if plan.masked:
        logits = forbid(logits, batch.mask)
    tokens = choose(process(logits, batch, plan), batch, plan, implementation=implementation)
    if plan.logprobs is None:
        return SampleOutput(tokens, None, None, None, None)
    if plan.targets:
        tokens = jnp.where(batch.targets >= 0, batch.targets, tokens)
    report = token_logprobs(logits, tokens, plan.logprobs)
    return SampleOutput(tokens, report.logprobs, report.top_ids, report.top_logprobs, report.rank)


def _check(logits: Float[Array, "batch vocab"], batch: SamplingBatch, plan: SamplingPlan) -> None:
    rows, packed = logits.shape[0], batch.ints.shape[0]
    if packed != rows:
        raise ValueError(
            f"batch must have a row for each row of logits, got {packed} for {rows}; pack it with size={rows}"
        )
    for name, there, needed in (
        ("history", batch.history is not None, plan.history),
        ("bias_ids", batch.bias_ids is not None, plan.logit_bias),
        ("targets", batch.targets is not None, plan.targets),
        ("mask", batch.mask is not None, plan.masked),
    ):
        if there != needed:
            raise ValueError(f"batch must have {name} exactly if the plan needs it, got {there}; pack it with the plan")
    if plan.masked and batch.mask.shape != (rows, mask_words(logits.shape[-1])):
        raise ValueError(
            f"mask must be int32[{rows}, {mask_words(logits.shape[-1])}] for these logits, got {list(batch.mask.shape)}"
        )
