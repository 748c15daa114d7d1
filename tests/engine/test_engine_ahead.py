"""Random requests whose sampling looks at their tokens, eight steps a launch and ahead, give what each gives alone."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import cpu_kernels
from realm_jax import gguf, models
from realm_jax.engine import Engine, EngineConfig, Runner
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.sequence import Sequence, token_array
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker, TokenHistory

if not cpu_kernels.is_available():
    pytest.skip(f"sums of XLA depend on shapes; {cpu_kernels.why_unavailable()}", allow_module_level=True)

MODEL = Path(__file__).parents[1] / "data" / "tiny" / "llama.gguf"
REQUESTS = 24
TOGETHER = EngineConfig(max_num_seqs=3, max_num_batched_tokens=16, decode_steps=8)
# As many, that the same programs serve; no two of them meet.
ALONE = EngineConfig(
    max_num_seqs=3, max_num_batched_tokens=16, decode_steps=1, prefix_caching=False, async_scheduling=False
)


def new_runner(varied: bool) -> Runner:
    """`varied`: its cache has room for one sequence at its longest, so that of three the last to come is preempted."""
    model = models.build(gguf.open(MODEL), implementation="cpu")
    size = CacheSize(max_model_len=320, num_blocks=(23 if varied else 60,))
    return Runner(model, size, block_size=16, kv_cache_dtype="float16")


def hardly_the_same_twice(history: TokenHistory, logits: jax.Array) -> jax.Array:
    return logits.at[history.tokens[history.length - 1]].add(-2.0)


def drawn(rng: np.random.Generator, vocab_size: int, varied: bool) -> SamplingRequest:
    """A request with random numbers for all that its kind has; `varied`: of any kind, with programs of many shapes."""

    def some_tokens(least: int, most: int) -> list[int]:
        return rng.choice(vocab_size, size=rng.integers(least, most + 1), replace=False).tolist()

    banned, *rest = some_tokens(2, 3)
    bias = {token: float(rng.normal(scale=4)) for token in rest} | {banned: -math.inf}
    penalties = {
        "repetition_penalty": rng.uniform(0.8, 1.5),
        "presence_penalty": rng.uniform(-1, 2),
        "frequency_penalty": rng.uniform(-0.3, 1),
    }
    processors = {"logits_processors": [hardly_the_same_twice]}
    temperature = {"temperature": rng.uniform(0.1, 1.5)}
    # A launch has all that any of its requests needs: of the first two kinds, what the first one needs.
    kinds: list[dict[str, Any]] = [
        {**temperature, "logit_bias": bias, **penalties, **processors},
        {"temperature": 0.0, "logit_bias": bias},
        {"temperature": 0.0, "logit_bias": bias, **penalties},
        {**temperature, "top_k": int(rng.integers(2, 40)), **penalties},
        {**temperature, **processors},
    ]
    most = int(rng.integers(1, 60))
    wait = int(rng.integers(most)) if rng.random() < 0.5 else 0
    # Without bans until `min_tokens`, for which few programs have room, more of them than the device knows.
    stops = some_tokens(1, 5 if wait else 12) if rng.random() < 0.7 else None
    kind = kinds[rng.choice(5) if varied else rng.choice(2, p=[0.75, 0.25])]
    params = SamplingParams(max_tokens=most, min_tokens=wait, stop_token_ids=stops, logprobs=2 if varied else 0, **kind)
    # Arrays of histories hold 256 tokens, and 512 where that is too little.
    long = varied and rng.random() < 0.2
    prompt = rng.integers(vocab_size, size=rng.integers(235, 256) if long else rng.integers(1, 30)).tolist()
    seed = int(rng.integers(2**63))
    return SamplingRequest(params=params, seed=seed, prompt_length=len(prompt), token_ids=token_array(prompt))


def sequences(seed: int, vocab_size: int, varied: bool) -> list[Sequence]:
    rng = np.random.default_rng(seed)
    made = [drawn(rng, vocab_size, varied) for _ in range(REQUESTS)]
    return [
        Sequence(
            sampling=request,
            max_tokens=request.params.max_tokens or 0,
            stop=StopChecker(request.params),
            detokenizer=None,
        )
        for request in made
    ]


def tokens_of(sequence: Sequence) -> list[Any]:
    """Each token with all that is reported of it."""
    return list(zip(sequence.output_token_ids, sequence.logprobs, strict=True))


def one_after_another(engine: Engine, made: list[Sequence]) -> None:
    for sequence in made:
        engine.add(sequence)
        while engine.has_work:
            engine.step()


def as_they_come(engine: Engine, made: list[Sequence], rng: np.random.Generator) -> int:
    """Steps until all are done, of which some are aborted; how often two launches with histories were on the device."""
    waiting, ahead = made[::-1], 0
    while waiting or engine.has_work:
        while waiting and rng.random() < 0.2:
            engine.add(waiting.pop())
        if not engine.has_work:
            continue
        engine.step()
        running = engine.scheduler.running
        ahead += any(sequence.in_flight > TOGETHER.decode_steps for sequence in running)
        if running and rng.random() < 0.02:
            engine.abort([running[rng.integers(len(running))]])
    assert engine.blocks.idle
    return ahead


@pytest.mark.parametrize(
    ("seed", "varied"), [(1, False), *(pytest.param(seed, True, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_random_requests_launched_ahead_as_each_one_alone(seed: int, varied: bool) -> None:
    runner = new_runner(varied)
    alone, together = (sequences(seed, runner.vocab_size, varied) for _ in range(2))
    one_after_another(Engine(runner, ALONE), alone)
    engine = Engine(runner, TOGETHER)
    ahead = as_they_come(engine, together, np.random.default_rng(seed))
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        got, expected = tokens_of(one), tokens_of(other)
        if one.finish_reason == "abort":
            expected = expected[: len(got)]
        else:
            assert one.finish_reason == other.finish_reason, number
        assert got == expected, number
    # They are worth comparing.
    assert ahead > REQUESTS and bool(engine.stats.preemptions) == varied
    assert {sequence.finish_reason for sequence in together} == {"stop", "length", "abort"}
