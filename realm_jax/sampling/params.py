"""SamplingParams: what a caller asks of sampling, under vLLM's names and with vLLM's meaning."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from realm_jax.structured import StructuredOutputs


class RequestOutputKind(enum.Enum):
    """What the outputs of a request tell while it runs, under vLLM's names."""

    CUMULATIVE = 0
    """Each output has everything so far."""
    DELTA = 1
    """Each output has what is new since the one before."""
    FINAL_ONLY = 2
    """There is one output, at the end."""


GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding, as in vLLM."""

LogitsProcessor = Callable[..., Any]
"""A pure jnp function `fn(history: TokenHistory, logits: float32[vocab]) -> float32[vocab]`.

It is traced, once per batch shape, under vmap over the requests. Functions are compared by identity: make one and
pass it to many requests, since each new function object compiles a new program.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when the request ends.

    Attributes:
        n: samples to draw for the prompt; 1 when decoding is greedy, since all samples would be the same.
        temperature: logits are divided by it; below 1e-5 decoding is greedy (ties go to the lowest token id).
        top_p: keep the smallest set of most probable tokens whose probability reaches it, in (0, 1]; 1 is off.
        top_k: keep this many most probable tokens; 0 is off. None and -1 (vLLM's other spelling) become 0.
        min_p: keep tokens at least this fraction as probable as the most probable one; 0 is off.
        typical_p: keep the smallest set of tokens whose surprise is nearest the entropy and whose probability
            reaches it, in (0, 1]; 1 is off (Meister et al. 2022, https://arxiv.org/abs/2202.00666).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or output.
        presence_penalty: subtracted from the logit of every token in the output, in [-2, 2].
        frequency_penalty: subtracted once per occurrence in the output, in [-2, 2].
        logit_bias: token id -> number added to its logit; -inf bans the token.
        seed: in [0, 2**64); None (or vLLM's -1, which becomes None) lets the engine derive one.
        stop: a string or strings that end the request; kept as a tuple.
        stop_token_ids: token ids that end the request; kept as a tuple.
        include_stop_str_in_output: whether the stop string, or the text of the stop token, is part of the text.
        ignore_eos: whether generation runs past the model's own end tokens.
        max_tokens: tokens to generate at most; None leaves only the context length as a limit.
        min_tokens: tokens before which no end token, stop token or stop string ends the request.
        logprobs: report the chosen token's log-probability and those of this many top tokens; None is off.
        prompt_logprobs: the same for every token of the prompt.
        skip_special_tokens: whether special tokens are left out of the text.
        logits_processors: pure jnp functions applied in this order; see `LogitsProcessor`.
        structured_outputs: what the output must be: JSON, a regular expression, a choice or a grammar.
        output_kind: what outputs tell while the request runs; `LLM.generate` returns whole requests anyway.

    Raises:
        ValueError: a value breaks its rule.
        TypeError: an unknown keyword.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = dataclasses.field(default=None, hash=False)
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    logits_processors: Sequence[LogitsProcessor] = ()
    structured_outputs: StructuredOutputs | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        for name, value in _canonical(self).items():
            object.__setattr__(self, name, value)
        _check_counts(self)
        _check_distribution(self)
        _check_penalties(self)
        _check_stops(self)
        _check_extensions(self)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty when there is none."""
        return tuple(self.stop or ())

    @property
    def penalised(self) -> bool:
        """Whether any of the three penalties changes a logit."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ValueError if `logit_bias` or `stop_token_ids` names a token that the model does not have."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token in ids or ():
                if token >= vocab_size:
                    raise ValueError(
                        f"{name} must name tokens below the vocabulary size {vocab_size}, got {token}; remove it"
                    )


def _canonical(params: SamplingParams) -> dict[str, Any]:
    """The fields that have several spellings, each in the one the rest of the package reads."""
    fields: dict[str, Any] = {}
    if params.top_k in (None, -1):
        fields["top_k"] = 0
    if params.seed == -1:
        fields["seed"] = None
    if params.stop is not None:
        fields["stop"] = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
    if params.stop_token_ids is not None:
        fields["stop_token_ids"] = tuple(params.stop_token_ids)
    if params.logit_bias is not None:
        fields["logit_bias"] = dict(params.logit_bias)
    fields["logits_processors"] = tuple(params.logits_processors or ())
    return fields


def _require(holds: bool, name: str, rule: str, value: Any, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value!r}; {remedy}")


def _is_int(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_counts(p: SamplingParams) -> None:
    _require(_is_int(p.n, 1), "n", "an integer >= 1", p.n, "ask for at least one sample")
    limit = "use None for no limit"
    _require(p.max_tokens is None or _is_int(p.max_tokens, 1), "max_tokens", "an integer >= 1", p.max_tokens, limit)
    _require(_is_int(p.min_tokens, 0), "min_tokens", "an integer >= 0", p.min_tokens, "use 0 for no minimum")
    if p.max_tokens is not None:
        rule = f"at most max_tokens = {p.max_tokens}"
        _require(p.min_tokens <= p.max_tokens, "min_tokens", rule, p.min_tokens, "raise max_tokens")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(p, name)
        _require(value is None or _is_int(value, 0), name, "an integer >= 0", value, "use None to report none")
    rule = "an integer in [0, 2**64)"
    _require(p.seed is None or _is_int(p.seed, 0, 2**64 - 1), "seed", rule, p.seed, "use None for a derived seed")


def _check_distribution(p: SamplingParams) -> None:
    finite = _is_real(p.temperature) and p.temperature >= 0
    _require(finite, "temperature", "a finite number >= 0", p.temperature, "use 0 for greedy decoding")
    _require(_is_int(p.top_k, 0, 2**31 - 1), "top_k", "an integer >= 0", p.top_k, "use 0 to keep every token")
    for name in ("top_p", "typical_p"):
        value = getattr(p, name)
        _require(_is_real(value) and 0 < value <= 1, name, "in (0, 1]", value, "use 1 to keep every token")
    _require(_is_real(p.min_p) and 0 <= p.min_p <= 1, "min_p", "in [0, 1]", p.min_p, "use 0 to keep every token")
    _require(p.n == 1 or not p.greedy, "n", "1 when temperature is 0", p.n, "raise the temperature")


def _check_penalties(p: SamplingParams) -> None:
    value = p.repetition_penalty
    _require(_is_real(value) and value > 0, "repetition_penalty", "a finite number > 0", value, "use 1 for none")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(p, name)
        _require(_is_real(value) and -2 <= value <= 2, name, "in [-2, 2]", value, "use 0 for none")


def _check_stops(p: SamplingParams) -> None:
    for text in p.stop_strings:
        _require(isinstance(text, str) and text != "", "stop", "one or more non-empty strings", text, "remove it")
    for token in p.stop_token_ids or ():
        _require(_is_int(token, 0, 2**31 - 1), "stop_token_ids", "token ids >= 0", token, "remove it")


def _check_extensions(p: SamplingParams) -> None:
    for token, value in (p.logit_bias or {}).items():
        _require(_is_int(token, 0, 2**31 - 1), "logit_bias", "keyed by token ids >= 0", token, "remove it")
        allowed = _is_real(value) or value == -math.inf
        _require(allowed, "logit_bias", "made of finite numbers or -inf", value, "use -inf to ban a token")
    for function in p.logits_processors:
        _require(callable(function), "logits_processors", "functions (history, logits)", function, "pass a function")
    outputs = p.structured_outputs
    known = outputs is None or isinstance(outputs, StructuredOutputs)
    kind = p.output_kind
    _require(isinstance(kind, RequestOutputKind), "output_kind", "a RequestOutputKind", kind, "take one of its members")
    _require(
        known, "structured_outputs", "a StructuredOutputs", outputs, "make one, such as StructuredOutputs(json=...)"
    )
