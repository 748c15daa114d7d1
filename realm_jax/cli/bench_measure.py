"""Owns timing prefill and decode steps on a model's engine, by llama-bench's method."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realm_jax.cli.errors import CommandError

if TYPE_CHECKING:
    import numpy as np

    from realm_jax import LLM
    from realm_jax.engine.engine import Engine
    from realm_jax.engine.sequence import Sequence


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
        """Return the tokens a sequence starts with: its depth, or for a decode from nothing a single token."""
        return self.depth or (self.tokens if self.kind == "pp" else 1)

    @property
    def room(self) -> int:
        """Return the tokens a sequence may grow by: those of the test, and one sampled before and after them."""
        return 2 if self.prompt_length == self.tokens and not self.depth else self.tokens + 2

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


def measure(llm: "LLM", case: Case, repetitions: int) -> Result:
    """Run a case once to warm up, which compiles, then repetitions times.

    Prompts are random tokens. A prefill run (pp) starts at the first step after the depth and ends when every
    sequence has the logits of its last token; a decode run (tg) is `tokens` steps from there, one token of every
    sequence each. Sampling is greedy and no text is made.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    _run(llm, case, rng)
    seconds = [_run(llm, case, rng) for _ in range(repetitions)]
    return Result(case=case, samples=[case.batch * case.tokens / s for s in seconds])


def seconds_of(llm: "LLM", case: Case, around: Callable[[Callable[[], None]], None]) -> float:
    """Run a case once and return its seconds; `around` is given the timed part and has to call it."""
    import numpy as np

    return _run(llm, case, np.random.default_rng(0), around)


def _run(
    llm: "LLM",
    case: Case,
    rng: "np.random.Generator",
    around: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> float:
    """Run a case once and return its seconds."""
    engine = llm.new_engine(case.batch)
    if engine.pool.free < case.batch * -(-case.length // llm.runner.block_size):
        raise CommandError(f"{case.batch} sequences of {case.length} tokens do not fit into memory; lower --batch")
    sequences = _sequences(llm, case, rng)
    for sequence in sequences:
        engine.add(sequence)
    engine.warm_up(sequences)
    if case.kind == "pp" and not case.depth:
        return _seconds(lambda: around(lambda: _prefill(engine, sequences)))
    _prefill(engine, sequences)
    if case.kind == "tg":
        return _seconds(lambda: around(lambda: _decode(engine, case.tokens)))
    for sequence in sequences:  # with the token that its depth ended in, `tokens` are to be computed
        token_ids: Any = sequence.sampling.token_ids  # the array that the engine itself extends
        token_ids.extend(_random_tokens(llm, rng, case.tokens - 1))
    return _seconds(lambda: around(lambda: _prefill(engine, sequences)))


def _sequences(llm: "LLM", case: Case, rng: "np.random.Generator") -> list["Sequence"]:
    from realm_jax import SamplingParams
    from realm_jax.requests import RequestFactory

    # without a tokenizer no text is made
    factory = RequestFactory(None, vocab_size=llm.config.vocab_size, max_model_len=llm.max_model_len, seed=0)
    params = SamplingParams(temperature=0.0, max_tokens=case.room, ignore_eos=True)
    prompts = [{"prompt_token_ids": _random_tokens(llm, rng, case.prompt_length)} for _ in range(case.batch)]
    return [factory.make(prompt, params).sequences[0] for prompt in prompts]


def _random_tokens(llm: "LLM", rng: "np.random.Generator", count: int) -> list[int]:
    return rng.integers(llm.config.vocab_size, size=count).tolist()


def _prefill(engine: "Engine", sequences: list["Sequence"]) -> None:
    """Step until every token that the sequences hold now is computed."""
    goals = [sequence.num_tokens for sequence in sequences]
    while any(sequence.num_computed_tokens < goal for sequence, goal in zip(sequences, goals, strict=True)):
        engine.step()


def _decode(engine: "Engine", steps: int) -> None:
    for _ in range(steps):
        engine.step()


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
