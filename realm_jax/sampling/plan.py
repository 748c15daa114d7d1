"""SamplingPlan: the static part of sampling, chosen from the requests of a batch; one plan is one program."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence

from realm_jax.sampling.params import LogitsProcessor, SamplingParams

DEFAULT_CANDIDATES = 64
MAX_CANDIDATES = 256
_LOGPROB_COUNTS = (0, 5, 20)

ProcessorChain = tuple[LogitsProcessor, ...]


class SamplingMode(enum.StrEnum):
    """How tokens are drawn. The mode changes the cost of a step, never a token."""

    GREEDY = "greedy"
    """Every request takes its most probable token."""
    CANDIDATES = "candidates"
    """Requests with top_k or top_p draw from the most probable tokens, or exactly where those do not decide."""
    FULL = "full"
    """Every token is looked at: no request has top_k or top_p, or only after typical_p."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Which parts of sampling a compiled step contains. Hashable, for use as a static argument.

    Attributes:
        mode: how tokens are drawn.
        candidates: the most probable tokens looked at in candidates mode, 0 in the other modes.
        filters: whether some request filters by rank (top_k, top_p, typical_p); candidates mode implies it.
        typical: whether some request uses typical_p; implies filters.
        penalties: whether some request uses a repetition, presence or frequency penalty.
        logit_bias: whether some request has logit_bias or min_tokens (a ban is a bias of -inf).
        processors: the distinct chains of logits processors; a request's chain is its number here, plus 1.
        masked: whether some request has structured_outputs, so that the batch holds a mask of allowed tokens.
        logprobs: top tokens whose log-probabilities are reported; None computes no log-probability at all.
        targets: whether some rows report a given token in place of a sampled one; needs logprobs.
    """

    mode: SamplingMode = SamplingMode.GREEDY
    candidates: int = 0
    filters: bool = False
    typical: bool = False
    penalties: bool = False
    logit_bias: bool = False
    processors: tuple[ProcessorChain, ...] = ()
    masked: bool = False
    logprobs: int | None = None
    targets: bool = False

    def scoring(self, top: int) -> SamplingPlan:
        """This plan for a step that scores given tokens too, with `top` of the most probable ones beside them."""
        return dataclasses.replace(self, logprobs=_logprob_count((self.logprobs, top)), targets=True)

    @property
    def history(self) -> bool:
        """Whether the step needs the tokens so far."""
        return self.penalties or bool(self.processors)

    @property
    def repeats(self) -> bool:
        """Whether all that a step needs follows from the step before, so that several can run without the host."""
        return not self.masked

    @property
    def varies(self) -> bool:
        """Whether the shapes of what a step needs depend on the requests, so that not all programs can be foreseen."""
        return self.history or self.logit_bias or self.masked

    def covers(self, other: SamplingPlan) -> bool:
        """Whether requests of the other plan can be sampled by this one, giving the same tokens."""
        return (
            (self.mode != SamplingMode.GREEDY or other.mode == SamplingMode.GREEDY)
            and (self.filters or not other.filters)
            and (self.typical or not other.typical)
            and (self.penalties or not other.penalties)
            and (self.logit_bias or not other.logit_bias)
            and (self.targets or not other.targets)
            and (self.masked or not other.masked)
            and set(self.processors).issuperset(other.processors)
            and (other.logprobs is None or (self.logprobs is not None and self.logprobs >= other.logprobs))
        )

    def chain_number(self, request_plan: SamplingPlan) -> int:
        """The number, from 1, of the processors of a single request's plan; 0 if it has none."""
        return self.processors.index(request_plan.processors[0]) + 1 if request_plan.processors else 0


def plan_for(params: Sequence[SamplingParams]) -> SamplingPlan:
    """The smallest plan that serves every request of a batch. Counts are rounded up so that few plans exist."""
    random = [p for p in params if not p.greedy]
    ranked = [p for p in random if p.typical_p == 1 and (p.top_k or p.top_p < 1)]
    typical = any(p.typical_p < 1 for p in random)
    mode = SamplingMode.GREEDY
    if random:
        mode = SamplingMode.CANDIDATES if ranked else SamplingMode.FULL
    return SamplingPlan(
        mode=mode,
        candidates=_candidate_count(p.top_k or 0 for p in ranked) if ranked else 0,
        filters=bool(ranked) or typical,
        typical=typical,
        penalties=any(p.penalised for p in params),
        logit_bias=any(p.logit_bias or p.min_tokens for p in params),
        processors=tuple(dict.fromkeys(tuple(p.logits_processors) for p in params if p.logits_processors)),
        masked=any(p.structured_outputs is not None for p in params),
        logprobs=_logprob_count(p.logprobs for p in params),
    )


def _candidate_count(top_ks: Iterable[int]) -> int:
    """Enough for every top_k up to MAX_CANDIDATES; beyond it, requests are drawn exactly."""
    wanted = max((k for k in top_ks if k <= MAX_CANDIDATES), default=0)
    return DEFAULT_CANDIDATES if wanted <= DEFAULT_CANDIDATES else MAX_CANDIDATES


def _logprob_count(counts: Iterable[int | None]) -> int | None:
    wanted = max((count for count in counts if count is not None), default=None)
    if wanted is None:
        return None
    return next((count for count in _LOGPROB_COUNTS if wanted <= count), 1 << (wanted - 1).bit_length())
