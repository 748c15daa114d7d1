"""Several decode steps in one dispatch give what single ones give, whatever ends a sequence meanwhile."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from realm_jax import gguf, models
from realm_jax.engine.engine import Engine, EngineConfig
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence, token_array
from realm_jax.nn import Taps
from realm_jax.ops import fastest_implementation
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker, TokenHistory

TINY = Path(__file__).parents[1] / "data" / "tiny"
LENGTH = 64
PROMPTS = ([1, 2, 3], [7], list(range(20, 33)))


FASTEST = fastest_implementation()


def new_runner(implementation: str, length: int) -> Runner:
    model = models.build(gguf.open(TINY / "llama.gguf"), implementation=implementation)
    size = CacheSize(max_model_len=length, num_blocks=(32,))
    return Runner(model, size, block_size=16, kv_cache_dtype="float32")


@pytest.fixture(scope="module")
def runner() -> Runner:
    return new_runner("xla", LENGTH)


@pytest.fixture(scope="module")
def fast() -> Runner:
    return new_runner(FASTEST, 320)


def sequences(of_each: list[dict[str, Any]] | None = None, **options: Any) -> list[Sequence]:
    made = []
    for i, prompt in enumerate(PROMPTS):
        params = SamplingParams(max_tokens=7 + 6 * i, **(of_each[i] if of_each else options))
        request = SamplingRequest(params=params, seed=i, prompt_length=len(prompt), token_ids=token_array(prompt))
        made.append(Sequence(sampling=request, max_tokens=7 + 6 * i, stop=StopChecker(params), detokenizer=None))
    return made


def run(
    runner: Runner,
    decode_steps: int,
    *,
    max_num_seqs: int = 3,
    taps: Taps | None = None,
    **options: Any,
) -> Any:
    """Tokens, log-probabilities and finish reasons of each sequence; every step gives a sequence one token at most."""
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    config = {name: options.pop(name) for name in [*options] if name in fields}
    engine = Engine(runner, EngineConfig(max_num_seqs=max_num_seqs, decode_steps=decode_steps, **config))
    engine.use(taps or Taps())
    made = sequences(**options)
    for sequence in made:
        engine.add(sequence)
    while engine.has_work:
        before = [sequence.num_tokens for sequence in made]
        took = engine.step()
        grown = [sequence for sequence, n in zip(made, before, strict=True) if sequence.num_tokens > n]
        assert grown == [sequence for sequence in made if sequence in took]
        assert all(sequence.num_tokens <= n + 1 for sequence, n in zip(made, before, strict=True))
    assert engine.blocks.idle
    return [(s.output_token_ids, [(p.token, p.top_ids) for p in s.logprobs], s.finish_reason) for s in made]


GREEDY, SAMPLED = {"temperature": 0.0}, {"temperature": 0.9, "top_k": 5, "logprobs": 2}


@pytest.mark.parametrize(
    ("max_num_seqs", "options"),
    [(1, GREEDY), (3, GREEDY), (3, SAMPLED), pytest.param(1, SAMPLED, marks=pytest.mark.slow)],
)
def test_many_steps_equal_single_ones(runner: Runner, max_num_seqs: int, options: dict[str, Any]) -> None:
    single = run(runner, 1, max_num_seqs=max_num_seqs, **options)
    assert [len(tokens) for tokens, _, _ in single] == [7, 13, 19]
    for steps in (2, 8):
        many = run(runner, steps, max_num_seqs=max_num_seqs, **options)
        for (tokens, logprobs, reason), (expected, wanted, why) in zip(many, single, strict=True):
            assert (tokens, reason) == (expected, why)
            assert [ids for _, ids in logprobs] == [ids for _, ids in wanted]
            # Batches of other sizes, whose float32 sums XLA orders otherwise.
            assert [p for p, _ in logprobs] == pytest.approx([p for p, _ in wanted], abs=1e-4)


def test_a_crowd_runs_fewer_steps_of_the_same_programs(runner: Runner) -> None:
    def launches(**config: Any) -> tuple[Any, list[int]]:
        made, steps = [s for _ in range(2) for s in sequences(temperature=0.0)], []
        engine = Engine(runner, EngineConfig(max_num_seqs=6, decode_steps=8, **config))
        for sequence in made:
            engine.add(sequence)
        while engine.has_work:
            engine.step()
            steps += [launch.step.steps for launch in engine._launched]
        assert engine.blocks.idle
        return [s.output_token_ids for s in made], steps

    alone, long_rows = launches()
    compiled = runner.compilations
    crowded, rows = launches(crowded_decode_steps=2)
    assert crowded == alone and 2 not in long_rows and runner.compilations == compiled
    # Six that end after 7, 13 and 19 tokens, two each: four remain after the first two.
    assert rows.index(2) < rows.index(8) and 2 not in rows[rows.index(8) :]


def test_a_stop_token_ends_a_sequence_amid_the_steps(runner: Runner) -> None:
    whole = run(runner, 1, temperature=0.0)
    stop = whole[2][0][9]
    expected = run(runner, 1, temperature=0.0, stop_token_ids=[stop])
    assert expected[2][2] == "stop" and len(expected[2][0]) < len(whole[2][0])
    assert run(runner, 8, temperature=0.0, stop_token_ids=[stop]) == expected


def never_the_same_twice(history: TokenHistory, logits: jax.Array) -> jax.Array:
    newest = history.tokens[history.length - 1]
    return logits.at[newest].set(-jnp.inf)


# A bias towards one token makes the others matter: without it these requests hardly repeat themselves.
ON_THE_DEVICE: list[dict[str, Any]] = [
    {"temperature": 0.0, "frequency_penalty": 0.4, "logit_bias": {9: 3.0, 11: -math.inf}},
    {"temperature": 0.0, "logit_bias": {9: 5.0}, "logits_processors": [never_the_same_twice]},
    {"temperature": 0.0, "repetition_penalty": 1.3, "min_tokens": 5, "stop_token_ids": list(range(0, 128, 3))},
]


def test_what_follows_from_the_tokens_needs_no_host(fast: Runner) -> None:
    # Launched one by one: the host packs every history of tokens that it knows.
    expected = run(fast, 1, async_scheduling=False, of_each=ON_THE_DEVICE, max_num_seqs=2)
    assert run(fast, 8, of_each=ON_THE_DEVICE, max_num_seqs=2) == expected
    (first, *_), (second, *_), (third, _, reason) = expected
    assert 11 not in first and all(a != b for a, b in itertools.pairwise(second))
    stops = [i for i, token in enumerate(third) if token % 3 == 0]
    assert reason == "stop" and stops == [len(third) - 1] and stops[0] >= 5


def test_penalised_sequences_that_stay_together_are_launched_ahead(fast: Runner) -> None:
    engine = Engine(fast, EngineConfig(max_num_seqs=3, decode_steps=4))
    for sequence in sequences(temperature=0.0, repetition_penalty=1.3):
        engine.add(sequence)
    engine.step()
    engine.step()
    assert len(engine._launched) + bool(engine._ahead) == 2 and all(s.in_flight > 4 for s in engine.scheduler.running)
    engine.abort(engine.scheduler.running[:])


def test_a_history_that_outgrows_its_array_gets_a_larger_one(fast: Runner) -> None:
    results = []
    for steps, ahead in ((1, False), (8, True)):
        engine = Engine(fast, EngineConfig(max_num_seqs=1, decode_steps=steps, async_scheduling=ahead))
        params = SamplingParams(temperature=0, frequency_penalty=0.7, max_tokens=40)
        prompt = token_array([i % 100 for i in range(240)])
        request = SamplingRequest(params=params, seed=0, prompt_length=240, token_ids=prompt)
        sequence = Sequence(sampling=request, max_tokens=40, stop=StopChecker(params), detokenizer=None)
        engine.add(sequence)
        while engine.has_work:
            engine.step()
        results.append(sequence.output_token_ids)
    assert results[0] == results[1] and len(results[0]) == 40


def test_edits_run_step_by_step(runner: Runner) -> None:
    doubled = Taps.of(edits={"layers.0.resid_post": lambda x: 2 * x})
    assert run(runner, 8, taps=doubled, temperature=0.0) == run(runner, 1, taps=doubled, temperature=0.0)


def test_steps_beyond_the_longest_context_are_dropped(runner: Runner) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6)
    outputs = []
    for steps in (1, 8):
        engine = Engine(runner, EngineConfig(max_num_seqs=1, decode_steps=steps))
        prompt = token_array(list(range(LENGTH - 6)))
        request = SamplingRequest(params=params, seed=0, prompt_length=len(prompt), token_ids=prompt)
        sequence = Sequence(sampling=request, max_tokens=6, stop=StopChecker(params), detokenizer=None)
        engine.add(sequence)
        while engine.has_work:
            engine.step()
        outputs.append(sequence.output_token_ids)
    assert outputs[0] == outputs[1] and len(outputs[0]) == 6


def test_an_abort_amid_the_steps_leaves_nothing_behind(runner: Runner) -> None:
    engine = Engine(runner, EngineConfig(max_num_seqs=3, decode_steps=8))
    first = sequences(temperature=0.0)
    for sequence in first:
        engine.add(sequence)
    for _ in range(5):
        engine.step()
    engine.abort(first)
    assert not engine.has_work and engine.blocks.idle
    second = sequences(temperature=0.0)
    for sequence in second:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert [s.output_token_ids for s in second] == [tokens for tokens, _, _ in run(runner, 1, temperature=0.0)]
