"""Sampling: what a caller asks for, how a compiled step chooses tokens, and when a request ends."""

from realm_jax.sampling.batch import SamplingBatch, SamplingRequest, pack, pack_history
from realm_jax.sampling.logprobs import TokenLogprobs, token_logprobs
from realm_jax.sampling.params import LogitsProcessor, RequestOutputKind, SamplingParams
from realm_jax.sampling.plan import SamplingMode, SamplingPlan, plan_for
from realm_jax.sampling.processors import TokenHistory
from realm_jax.sampling.sample import SampleOutput, sample
from realm_jax.sampling.stop import FinishReason, StopChecker, StopResult

__all__ = [
    "FinishReason",
    "LogitsProcessor",
    "RequestOutputKind",
    "SampleOutput",
    "SamplingBatch",
    "SamplingMode",
    "SamplingParams",
    "SamplingPlan",
    "SamplingRequest",
    "StopChecker",
    "StopResult",
    "TokenHistory",
    "TokenLogprobs",
    "pack",
    "pack_history",
    "plan_for",
    "sample",
    "token_logprobs",
]
