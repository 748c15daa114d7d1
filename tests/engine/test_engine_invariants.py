"""What else runs, and how it is run, changes nothing: results have equal bits however requests were scheduled."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_kernels
from realm_jax import gguf, models
from realm_jax.engine import Engine, EngineConfig, Request, RequestFactory, Runner, Sequence
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.sequence import PositionLogprobs
from realm_jax.sampling import SamplingParams

if not cpu_kernels.is_available():
    pytest.skip(f"sums of XLA depend on shapes; {cpu_kernels.why_unavailable()}", allow_module_level=True)

LENGTH, BLOCK = 160, 16
# One request at a time, its prompt whole, each token by itself, nothing remembered.
PLAIN = EngineConfig(
    max_num_seqs=1, max_num_batched_tokens=LENGTH, decode_steps=1, prefix_caching=False, async_scheduling=False
)
ALL_AT_ONCE = EngineConfig(max_num_seqs=8, max_num_batched_tokens=LENGTH)
CHUNK = 24
Results = list[list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> models.CausalLM:
    return models.build(gguf.open(smollm2_path), implementation="cpu")


@pytest.fixture(scope="module")
def runner(model: models.CausalLM) -> Runner:
    """One for all tests, for what it has compiled."""
    size = CacheSize(max_model_len=LENGTH, num_blocks=(100,))
    return Runner(model, size, block_size=BLOCK, kv_cache_dtype="float16")


def requests(vocab_size: int) -> list[Request]:
    """Prompts of several lengths, most of which begin alike; greedy, drawn, scored, and with several samples.

    All ask for log-probabilities, which are compared too, and which make programs of their own where only some do.
    """
    factory = RequestFactory(None, vocab_size=vocab_size, max_model_len=LENGTH, seed=7)
    rng = np.random.default_rng(3)
    beginning = rng.integers(vocab_size, size=50).tolist()
    asked = [
        (45, {"temperature": 0.0}),
        (3, {"temperature": 0.0}),
        (60, {"temperature": 0.8, "top_k": 20}),
        (48, {"temperature": 0.0, "prompt_logprobs": 1}),
        (50, {"temperature": 1.0, "n": 3, "top_p": 0.9}),
        (90, {"temperature": 0.0}),
        (31, {"temperature": 0.0, "repetition_penalty": 1.2}),
    ]
    made = []
    for i, (length, options) in enumerate(asked):
        ids = (beginning + rng.integers(vocab_size, size=50).tolist())[:length]
        params = SamplingParams(max_tokens=9 + 5 * i, ignore_eos=True, logprobs=2, **options)
        made.append(factory.make({"prompt_token_ids": ids}, params))
    return made


def run(engine: Engine, made: list[Request]) -> Results:
    """All tokens, log-probabilities and scores of each sample; no block is held in the end."""
    for request in made:
        for sequence in request.sequences:
            engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert engine.blocks.idle
    return [[_result(sequence) for sequence in request.sequences] for request in made]


def _result(sequence: Sequence) -> tuple[Any, ...]:
    scores = PositionLogprobs.concatenate(sequence.scores) if sequence.scores else None
    lists = None if scores is None else [array.tolist() for array in dataclasses.astuple(scores)]
    return sequence.output_token_ids, sequence.logprobs, lists


@pytest.fixture(scope="module")
def plain(runner: Runner) -> Results:
    made = requests(runner.vocab_size)
    engine = Engine(runner, PLAIN)
    return [run(engine, [request])[0] for request in made]


@pytest.fixture(scope="module")
def check(runner: Runner, plain: Results) -> Iterator[Any]:
    def check(config: EngineConfig, *, times: int = 1) -> Engine:
        engine = Engine(runner, config)
        for _ in range(times):
            assert run(engine, requests(runner.vocab_size)) == plain
        return engine

    yield check


def test_the_requests_are_worth_comparing(plain: Results) -> None:
    samples = [sample for request in plain for sample in request]
    assert len(samples) == 9 and len({tuple(tokens) for tokens, _, _ in samples}) == 9
    assert all(len(logprobs) == len(tokens) for tokens, logprobs, _ in samples)
    assert [scores is not None for _, _, scores in samples] == [False] * 3 + [True] + [False] * 5


def test_together_as_alone(check: Any) -> None:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=1000, prefix_caching=False, async_scheduling=False)
    check(config)


def test_in_chunks_mixed_with_decoding_as_whole(check: Any) -> None:
    check(EngineConfig(max_num_seqs=8, max_num_batched_tokens=CHUNK, prefix_caching=False))


def test_with_cached_prefixes_as_cold(check: Any) -> None:
    engine = check(ALL_AT_ONCE, times=2)
    assert engine.stats.cached_tokens > engine.stats.prompt_tokens // 3


def test_preempted_as_undisturbed(runner: Runner, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "num_blocks", (13,))  # the rest of the cache lies idle
    for caching in (False, True):
        engine = check(EngineConfig(max_num_seqs=8, max_num_batched_tokens=CHUNK, prefix_caching=caching))
        assert engine.stats.preemptions


def test_several_steps_in_a_launch_as_single_ones(check: Any) -> None:
    check(EngineConfig(max_num_seqs=2, max_num_batched_tokens=CHUNK, decode_steps=8))


def test_another_engine_s_writes_are_not_taken_for_a_prefix(runner: Runner, plain: Results) -> None:
    first, second = Engine(runner, ALL_AT_ONCE), Engine(runner, ALL_AT_ONCE)
    for engine in (first, second, first):
        made = requests(runner.vocab_size)
        if engine is second:  # other tokens in the same blocks
            for request in made:
                for sequence in request.sequences:
                    sequence.token_ids[0] = 5
            run(engine, made)
        else:
            assert run(engine, made) == plain
    first.add(requests(runner.vocab_size)[0].sequences[0])
    first.step()
    second.add(requests(runner.vocab_size)[0].sequences[0])
    with pytest.raises(RuntimeError, match="another engine has used this cache meanwhile"):
        second.step()
        first.step()
