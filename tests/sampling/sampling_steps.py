"""What the tests of sampling share: one jitted step and short ways to make requests and plans."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.sampling import SampleOutput, SamplingMode, SamplingParams, SamplingPlan, SamplingRequest, pack, sample

_step = jax.jit(sample, static_argnums=2, static_argnames="implementation")


def request(
    params: SamplingParams,
    seed: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    end_ids: frozenset[int] = frozenset(),
) -> SamplingRequest:
    """Make a request that has generated some tokens."""
    return SamplingRequest(
        params=params, seed=seed, prompt_length=len(prompt), token_ids=[*prompt, *output], end_ids=end_ids
    )


def run(
    logits: np.ndarray, requests: Sequence[SamplingRequest], plan: SamplingPlan, implementation: str = "xla"
) -> SampleOutput:
    """Pack and sample."""
    return _step(jnp.asarray(logits), pack(requests, plan, size=len(logits)), plan, implementation=implementation)


def in_full(plan: SamplingPlan) -> SamplingPlan:
    """Return the plan without candidates."""
    return dataclasses.replace(plan, mode=SamplingMode.FULL, candidates=0)


def uniform(seed: int, step: int) -> float:
    """Return the number in [0, 1) that decides a request's token."""
    key = jax.random.wrap_key_data(jnp.asarray([seed >> 32, seed % 2**32], jnp.uint32), impl="threefry2x32")
    return int(jax.random.key_data(jax.random.fold_in(key, step))[0]) / 2**32
