"""SamplingBatch: the per-request numbers of one step, packed into as few arrays as possible.

Moving an array to the device costs about 10 us a step, so all parameters share one float and one integer array.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from realm_jax.sampling.params import SamplingParams
from realm_jax.sampling.plan import SamplingPlan, plan_for

_MIN_HISTORY = 256
_MIN_BIAS = 8
_UNUSED_TOKEN = np.iinfo(np.int32).max
_ALWAYS = np.iinfo(np.uint32).max
_FRACTION = 2**32


class _Floats(enum.IntEnum):
    INVERSE_TEMPERATURE = 0
    LOG_MIN_P = 1
    REPETITION = 2
    PRESENCE = 3
    FREQUENCY = 4


class _Ints(enum.IntEnum):
    SEED_HIGH = 0
    SEED_LOW = 1
    TOP_K = 2
    TOP_P = 3
    TYPICAL_P = 4
    STEP = 5
    CHAIN = 6
    PROMPT_LENGTH = 7
    LENGTH = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SamplingRequest:
    """One sequence as `pack` reads it, made once; the engine appends to `token_ids` as tokens are generated.

    Attributes:
        params: what the caller asked for.
        seed: in [0, 2**64), explicit even where `params.seed` is None.
        prompt_length: how many of the first `token_ids` are the prompt.
        token_ids: prompt and output so far. An `array.array("i")` is packed without a loop over its items.
        end_ids: the model's end-of-generation tokens, banned together with the stop tokens until `min_tokens`.
    """

    params: SamplingParams
    seed: int
    prompt_length: int
    token_ids: Sequence[int]
    end_ids: frozenset[int] = frozenset()

    @property
    def step(self) -> int:
        """The number of tokens generated so far."""
        return len(self.token_ids) - self.prompt_length

    @functools.cached_property
    def _plan(self) -> SamplingPlan:
        return plan_for([self.params])

    @functools.cached_property
    def _floats(self) -> list[float]:
        p = self.params
        inverse_temperature = 0.0 if p.greedy else 1 / p.temperature
        log_min_p = math.log(p.min_p) if p.min_p else -math.inf
        return [inverse_temperature, log_min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty]

    @functools.cached_property
    def _ints(self) -> list[int]:
        p = self.params
        return [self.seed >> 32, self.seed % 2**32, p.top_k or 0, _fraction(p.top_p), _fraction(p.typical_p)]

    @functools.cached_property
    def _bias(self) -> list[tuple[int, float]]:
        return [(int(token), float(value)) for token, value in (self.params.logit_bias or {}).items()]

    @functools.cached_property
    def _bans(self) -> list[tuple[int, float]]:
        if not self.params.min_tokens:
            return []
        return [(token, -math.inf) for token in sorted(self.end_ids.union(self.params.stop_token_ids or ()))]

    @functools.cached_property
    def _changes(self) -> list[tuple[int, float, int]]:
        """Tokens, what is added to their logits, and how many tokens are generated when that ends."""
        bans = [(token, value, self.params.min_tokens) for token, value in self._bans]
        return [(token, value, _ALWAYS) for token, value in self._bias] + bans


def _fraction(p: float) -> int:
    """The largest 32-place binary fraction below p, so that "mass above p - 2**-32" is "mass at least p"; 0 is off."""
    return math.ceil(p * _FRACTION) - 1 if p < 1 else 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["floats", "ints", "history", "bias_ids", "bias_values", "bias_until", "mask", "targets"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SamplingBatch:
    """Per-request numbers, one row each; optional arrays are there if the plan needs them.

    Attributes:
        floats: float32[batch, 5], read through the properties below.
        ints: uint32[batch, 9], likewise.
        history: int32[batch, history], prompt then output then padding.
        bias_ids: int32[batch, bias], token ids whose logit changes; padding is an id beyond any vocabulary.
        bias_values: float32[batch, bias], what is added to them.
        bias_until: uint32[batch, bias], the number of generated tokens from which on it is not.
        targets: int32[batch], the token to report in place of a sampled one, or -1.
        mask: int32[batch, ceil(vocab / 32)], token i may come if bit `i % 32` of word `i // 32` is set.
    """

    floats: Any
    ints: Any
    history: Any = None
    bias_ids: Any = None
    bias_values: Any = None
    bias_until: Any = None
    targets: Any = None
    mask: Any = None

    @property
    def inverse_temperature(self) -> Float[Array, " batch"]:
        """What logits are multiplied by; 0 is greedy."""
        return self.floats[:, _Floats.INVERSE_TEMPERATURE]

    @property
    def log_min_p(self) -> Float[Array, " batch"]:
        """The logarithm of the least probability relative to the most probable token; -inf is off."""
        return self.floats[:, _Floats.LOG_MIN_P]

    @property
    def repetition_penalty(self) -> Float[Array, " batch"]:
        """The factor for tokens seen; 1 is off."""
        return self.floats[:, _Floats.REPETITION]

    @property
    def presence_penalty(self) -> Float[Array, " batch"]:
        """The amount taken off tokens in the output."""
        return self.floats[:, _Floats.PRESENCE]

    @property
    def frequency_penalty(self) -> Float[Array, " batch"]:
        """The amount taken off per occurrence in the output."""
        return self.floats[:, _Floats.FREQUENCY]

    @property
    def seed(self) -> UInt32[Array, "batch 2"]:
        """The seed's upper and lower 32 bits."""
        return self.ints[:, _Ints.SEED_HIGH : _Ints.SEED_LOW + 1]

    @property
    def top_k(self) -> UInt32[Array, " batch"]:
        """How many tokens to keep; 0 is off."""
        return self.ints[:, _Ints.TOP_K]

    @property
    def top_p(self) -> UInt32[Array, " batch"]:
        """The kept set is the smallest one whose share of the mass exceeds this, in units of 2**-32; 0 is off."""
        return self.ints[:, _Ints.TOP_P]

    @property
    def typical_p(self) -> UInt32[Array, " batch"]:
        """Like top_p, for the order of typicality."""
        return self.ints[:, _Ints.TYPICAL_P]

    @property
    def step(self) -> UInt32[Array, " batch"]:
        """The number of tokens generated so far."""
        return self.ints[:, _Ints.STEP]

    def with_mask(self, mask: Any) -> SamplingBatch:
        """The same requests with the masks of a step, for a plan that is masked."""
        return dataclasses.replace(self, mask=_all_rows(mask, len(self.ints)))

    def at_step(self, steps: np.ndarray, history: Any = None) -> SamplingBatch:
        """The same requests with `steps[n]` tokens generated, and this history, outside a jit."""
        ints = self.ints.copy()
        own = ints[: len(steps)]
        own[:, _Ints.STEP] = steps
        if history is not None:
            looks = own[:, _Ints.LENGTH] > 0
            own[looks, _Ints.LENGTH] = own[looks, _Ints.PROMPT_LENGTH] + own[looks, _Ints.STEP]
        return dataclasses.replace(self, ints=ints, history=history)

    def after(self, tokens: Int[Array, " batch"]) -> SamplingBatch:
        """The same requests with one token more, inside a jit; what a history has no room for is left out of it."""
        ints = self.ints.at[:, _Ints.STEP].add(1)
        if self.history is None:
            return dataclasses.replace(self, ints=ints)
        rows, width = self.history.shape
        looks = self.length > 0
        place = jnp.where(looks, self.length, width)
        history = self.history.at[jnp.arange(rows), place].set(tokens, mode="drop")
        return dataclasses.replace(self, ints=ints.at[:, _Ints.LENGTH].add(looks.astype(ints.dtype)), history=history)

    @property
    def chain(self) -> Int[Array, " batch"]:
        """The number of the request's processor chain in the plan, plus 1; 0 is none."""
        return self.ints[:, _Ints.CHAIN].astype("int32")

    @property
    def prompt_length(self) -> Int[Array, " batch"]:
        """How many tokens of the history are the prompt."""
        return self.ints[:, _Ints.PROMPT_LENGTH].astype("int32")

    @property
    def length(self) -> Int[Array, " batch"]:
        """How many tokens of the history count; 0 for requests that do not look at it."""
        return self.ints[:, _Ints.LENGTH].astype("int32")


def pack(
    requests: Sequence[SamplingRequest],
    plan: SamplingPlan,
    *,
    size: int | None = None,
    lengths: Sequence[int] | None = None,
    targets: Sequence[int] = (),
    mask: np.ndarray | None = None,
) -> SamplingBatch:
    """Collect the numbers of one step in numpy arrays.

    Args:
        requests: one for each row of the logits.
        plan: a plan that covers them all (`plan_for`).
        size: rows of the batch, at least as many as requests and targets; rows beyond them are greedy.
        lengths: prompt and output of each request, where some of it is not in its `token_ids` yet.
        targets: tokens to report in the rows behind the requests; the plan is one for `scoring`.
        mask: int32[at most size, ceil(vocab / 32)] for a masked plan; further rows allow every token. None leaves it
            to `SamplingBatch.with_mask`, for masks that are made while the model already runs.

    Raises:
        ValueError: more requests or masks than rows, a request that the plan does not cover, or a mask without need.
    """
    used = len(requests) + len(targets)
    rows = used if size is None else size
    if used > rows:
        raise ValueError(f"size must be at least the number of requests and targets, {used}, got {rows}; raise size")
    if mask is not None and not plan.masked:
        raise ValueError("mask must be given only for a masked plan, got one; leave it out")
    floats = np.zeros((rows, len(_Floats)), np.float32)
    floats[:, _Floats.REPETITION] = 1
    ints = np.zeros((rows, len(_Ints)), np.uint32)
    for row, request in enumerate(requests):
        if not plan.covers(request._plan):
            raise ValueError(f"plan must cover every request, got {plan} for {request._plan}; make it with plan_for")
        step = request.step if lengths is None else lengths[row] - request.prompt_length
        floats[row] = request._floats
        ints[row] = [*request._ints, step, *_history_columns(request, plan)]
    history = pack_history(requests, size=rows) if plan.history else None
    bias = _pack_bias(requests, rows) if plan.logit_bias else {}
    reported = None
    if plan.targets:
        reported = np.full(rows, -1, np.int32)
        reported[len(requests) : used] = targets
    batch = SamplingBatch(floats=floats, ints=ints, history=history, targets=reported, **bias)
    return batch if mask is None else batch.with_mask(mask)


def _all_rows(mask: Any, rows: int) -> Any:
    """The mask itself if it has all rows, else a copy with rows that allow everything."""
    if len(mask) > rows:
        raise ValueError(f"mask must have at most one row for each of the batch's {rows}, got {len(mask)}")
    if len(mask) == rows:
        return mask
    return np.concatenate([mask, np.full((rows - len(mask), mask.shape[1]), -1, np.int32)])


def _history_columns(request: SamplingRequest, plan: SamplingPlan) -> tuple[int, int, int]:
    """Chain, prompt length and length; all are 0 for a request that does not look at its history."""
    if not request._plan.history:
        return 0, 0, 0
    chain = plan.chain_number(request._plan)
    return chain, request.prompt_length, len(request.token_ids)


def _bucket(count: int, least: int) -> int:
    """The next power of two, so that few array sizes, and few programs, exist."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def pack_history(requests: Sequence[SamplingRequest], *, size: int, least: int = 0) -> np.ndarray:
    """`int32[size, history]`: the known tokens of each request that looks at them, with room for at `least` so many."""
    looking = [(row, request.token_ids) for row, request in enumerate(requests) if request._plan.history]
    longest = max((len(tokens) for _, tokens in looking), default=0)
    history = np.zeros((size, _bucket(max(longest, least), _MIN_HISTORY)), np.int32)
    for row, tokens in looking:
        history[row, : len(tokens)] = tokens
    return history


def _pack_bias(requests: Sequence[SamplingRequest], rows: int) -> dict[str, np.ndarray]:
    width = max((len(request._changes) for request in requests), default=0)
    ids = np.full((rows, _bucket(width, _MIN_BIAS)), _UNUSED_TOKEN, np.int32)
    values, until = np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.uint32)
    for row, request in enumerate(requests):
        for column, change in enumerate(request._changes):
            ids[row, column], values[row, column], until[row, column] = change
    return {"bias_ids": ids, "bias_values": values, "bias_until": until}
