"""After a warm-up requests of the announced kinds compile nothing, whatever their lengths, number and company."""

import dataclasses
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax import LLM, SamplingParams
from realm_jax.engine.batch import Buckets, SequenceSlice

TINY = Path(__file__).parents[1] / "data" / "tiny"
LENGTH = 96


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    sampled=st.integers(0, 20),
    start=st.integers(0, 3000),
    steps=st.sampled_from([1, 8]),
)
def test_every_shape_is_foreseen(counts: list[int], sampled: int, start: int, steps: int) -> None:
    limits = {"max_num_seqs": 20, "max_num_batched_tokens": 100}
    while sum(counts) > limits["max_num_batched_tokens"]:
        counts.pop()
    buckets = Buckets(max_model_len=3100, block_size=4, groups=2)
    slices = [
        SequenceSlice(tokens=range(count), start=start, block_tables=(), rows=(count - 1,) if i < sampled else ())
        for i, count in enumerate(counts)
    ]
    assert buckets.shape(slices, steps=steps) in buckets.every_shape(**limits)


@pytest.mark.parametrize(
    ("max_num_seqs", "max_num_batched_tokens"), [(2, 16), pytest.param(3, 24, marks=pytest.mark.slow)]
)
def test_nothing_is_compiled_after_it(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    sizes = {"max_model_len": LENGTH, "block_size": 16, "kv_cache_memory": 2**19}
    llm = LLM(TINY / "gemma3.gguf", quiet=True, **sizes, **limits)
    kinds = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, top_k=9)]
    engine = llm.llm_engine()
    engine.warm_up(kinds)
    compiled = llm.runner.compilations
    rng = random.Random(7)
    shared = [rng.randrange(100) for _ in range(40)]
    for number in range(60):
        ids = shared[: rng.choice([0, 0, 20, 40])] + [rng.randrange(100) for _ in range(rng.randint(1, 50))]
        kind = rng.choice(kinds)
        limit = rng.randint(1, LENGTH - len(ids))
        samples = 1 if kind.greedy else rng.choice([1, 3])
        params = dataclasses.replace(kind, max_tokens=limit, n=samples)
        engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        for _ in range(rng.choice([0, 1, 3, 30])):
            engine.step()
        if rng.random() < 0.1:
            engine.abort(str(rng.randrange(number + 1)))
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.stats.generated_tokens > 500 and engine.stats.cached_tokens and engine.engine.blocks.idle
    assert llm.runner.compilations == compiled


def test_what_depends_on_requests_is_refused() -> None:
    llm = LLM(TINY / "llama.gguf", max_model_len=LENGTH, max_num_seqs=1, block_size=16, quiet=True)
    with pytest.raises(ValueError, match="sampling_params must have no penalties"):
        llm.llm_engine().warm_up(SamplingParams(repetition_penalty=1.1))
