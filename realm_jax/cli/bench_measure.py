"""Owns timing prefill and decode steps on a model's engine, by llama-bench's method."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from realm_jax.cli.errors import CommandError

if TYPE_CHECKING:
    import numpy as np

    from realm_jax.engine.engine import Engine
    from realm_jax.engine.sequence import Sequence


@runtime_checkable
class Measured(Protocol):
    """What is measured: a `realm_jax.LLM`, or a model without a file that has engines too."""

    @property
    def config(self) -> Any:
        """The model's configuration."""
        ...

    @property
    def max_model_len(self) -> int:
        """The longest sequence."""
        ...

    def new_engine(self, **changes: Any) -> "Engine":
        """An engine of its own over the model's cache; `changes` are fields of EngineConfig."""
        ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test: prefill or decode `tokens` a sequence, `batch` sequences, each with `depth` tokens before."""

    kind: str
    tokens: int
    depth: int
    batch: int

    @property
    def test(self) -> str:
        """Return the name that llama-bench gives it, such as pp512."""
        return f"{self.kind}{self.tokens}"

    @property
    def prompt_length(self) -> int:
        """Return the tokens of a prompt: two at least for a decode, since one alone is decoded like the next."""
        return max(2, self.depth) if self.kind == "tg" else self.depth + self.tokens

    @property
    def room(self) -> int:
        """Return the tokens a sequence may grow by: those of the test, and one sampled before and after them."""
        return self.tokens + 2 if self.kind == "tg" else 1

    @property
    def length(self) -> int:
        """Return the longest that one sequence can get."""
        return self.prompt_length + self.room


@dataclass(frozen=True, kw_only=True)
class Result:
    """Tokens a second of each repetition of a case, all its sequences together."""

    case: Case
    samples: list[float]

    @property
    def median(self) -> float:
        """Return the middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Return the distance from the slowest to the fastest sample."""
        return max(self.samples) - min(self.samples)


def measure(llm: Measured, case: Case, repetitions: int) -> Result:
    """Run a case once to warm up, which compiles, then repetitions times.

    Prompts are random tokens. A prefill run (pp) starts with the depth in the cache, in whole blocks, and ends when
    every sequence has the logits of its last token; a decode run (tg) is `tokens` steps from there, one token of every
    sequence each. Sampling is greedy and no text is made.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    _run(llm, case, rng)
    runs = [_run(llm, case, rng) for _ in range(repetitions)]
    return Result(case=case, samples=[tokens / seconds for tokens, seconds in runs])


def seconds_of(llm: Measured, case: Case, around: Callable[[Callable[[], None]], None]) -> float:
    """Run a case once and return its seconds; `around` is given the timed part and has to call it.

    Nothing is launched ahead, so that nothing but the timed part runs meanwhile.
    """
    import numpy as np

    return _run(llm, case, np.random.default_rng(0), around, async_scheduling=False)[1]


def _run(
    llm: Measured,
    case: Case,
    rng: "np.random.Generator",
    around: Callable[[Callable[[], None]], None] = lambda work: work(),
    **changes: Any,
) -> tuple[int, float]:
    """Run a case once and return how many tokens were computed in how many seconds."""
    engine = llm.new_engine(max_num_seqs=case.batch, **changes)
    usual = engine.config.steps_of(case.batch)
    if case.kind == "tg" and case.tokens % usual:  # else a launch would also compute what is not counted
        engine = llm.new_engine(max_num_seqs=case.batch, decode_steps=math.gcd(case.tokens, usual), **changes)
    needed = engine.blocks.blocks_for(case.length, engine.config.max_num_batched_tokens)
    if not engine.blocks.fits([case.batch * blocks for blocks in needed]):
        raise CommandError(f"{case.batch} sequences of {case.length} tokens do not fit into memory; lower --batch")
    prompts = [_random_tokens(llm, rng, case.prompt_length) for _ in range(case.batch)]
    if case.kind == "tg":
        sequences = _started(llm, engine, prompts, case.room)
        _prefill(engine, sequences)
        seconds = _seconds(lambda: around(lambda: _decode(engine, sequences, case.tokens)))
        engine.abort(sequences)
        return case.batch * case.tokens, seconds
    if case.depth:
        _prefill(engine, _started(llm, engine, [prompt[: case.depth] for prompt in prompts], 1))
    known = engine.stats.cached_tokens
    sequences = _started(llm, engine, prompts, case.room)
    seconds = _seconds(lambda: around(lambda: _prefill(engine, sequences)))
    return case.batch * case.prompt_length - (engine.stats.cached_tokens - known), seconds


def _started(llm: Measured, engine: "Engine", prompts: list[list[int]], room: int) -> list["Sequence"]:
    """Queue sequences that grow by `room` tokens."""
    from realm_jax import SamplingParams
    from realm_jax.engine import RequestFactory

    # without a tokenizer no text is made
    factory = RequestFactory(None, vocab_size=llm.config.vocab_size, max_model_len=llm.max_model_len, seed=0)
    params = SamplingParams(temperature=0.0, max_tokens=room, ignore_eos=True)
    sequences = [factory.make({"prompt_token_ids": prompt}, params).sequences[0] for prompt in prompts]
    for sequence in sequences:
        engine.add(sequence)
    engine.warm_up(sequences)
    return sequences


def _random_tokens(llm: Measured, rng: "np.random.Generator", count: int) -> list[int]:
    return rng.integers(llm.config.vocab_size, size=count).tolist()


def _prefill(engine: "Engine", sequences: list["Sequence"]) -> None:
    """Step until every sequence has its first token."""
    while any(sequence.num_tokens == sequence.prompt_length for sequence in sequences):
        engine.step()


def _decode(engine: "Engine", sequences: list["Sequence"], tokens: int) -> None:
    """Step until every sequence has `tokens` more."""
    goal = min(sequence.num_tokens for sequence in sequences) + tokens
    while any(sequence.num_tokens < goal for sequence in sequences):
        engine.step()


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
