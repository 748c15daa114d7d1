"""A KV cache of 8 bits in the engine: it rounds keys and values and does nothing else, in place, shared and copied."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import gguf, models
from realm_jax.engine import Engine, EngineConfig, RequestFactory, Runner, scoring
from realm_jax.engine.blocks import BlockCopy
from realm_jax.engine.memory import CacheSize, group_sizes
from realm_jax.engine.streaming import StreamingRunner
from realm_jax.nn import Taps
from realm_jax.ops import kv_cache_bytes
from realm_jax.sampling import SamplingParams

TINY = Path(__file__).parents[1] / "data" / "tiny"
LENGTH, BLOCK = 96, 16
TOGETHER = EngineConfig(max_num_seqs=4, max_num_batched_tokens=32)
# One request at a time, its prompt whole, nothing remembered.
PLAIN = EngineConfig(max_num_seqs=1, max_num_batched_tokens=LENGTH, decode_steps=1, prefix_caching=False)


def new_runner(model: models.CausalLM, dtype: str = "q8_0", streamed: bool = False) -> Runner:
    groups = 1 + max(layer.group for layer in model.cache_spec())
    size = CacheSize(max_model_len=LENGTH, num_blocks=(40,) * groups)
    if streamed:
        return StreamingRunner(model, size, block_size=BLOCK, kv_cache_dtype=dtype, max_weight_memory=10**9)
    return Runner(model, size, block_size=BLOCK, kv_cache_dtype=dtype)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return new_runner(models.build(gguf.open(TINY / "llama.gguf")))


def rounded(x: Any) -> Any:
    """Every head of every position in 255 steps."""
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    return step * jnp.round(x / step)


# Windows and norms of q and k; biases; soft-caps; sinks and experts.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gemma2", "gpt_oss_mxfp4")]


@pytest.mark.parametrize("name", ["gemma3", *SLOW])
def test_it_is_the_rounding_of_keys_and_values(name: str) -> None:
    model = models.build(gguf.open(TINY / f"{name}.gguf"))
    coded, floats = new_runner(model), new_runner(model, "float32")
    ids = np.random.default_rng(0).integers(coded.vocab_size, size=60).tolist()
    taps = Taps.of((), {"layers.*.attn.k": rounded, "layers.*.attn.v": rounded})
    plain, expected = (scoring.sequence_logits(floats, ids, taps=t) for t in (Taps(), taps))
    found = scoring.sequence_logits(coded, ids)
    effect = np.abs(expected - plain)
    # Recorded: 0.011 to 0.026 of the largest logit.
    assert 0 < effect.max() <= 0.04 * np.abs(plain).max()
    # The same numbers are rounded, but where XLA fuses what leads to them otherwise one in hundreds may be a step off.
    assert np.abs(found - expected).mean() <= 0.01 * effect.mean()


def generate(runner: Runner, config: EngineConfig) -> list[list[int]]:
    """Prompts that begin alike, one of them with two samples, which share its last block until they write to it."""
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=LENGTH, seed=3)
    ids = np.random.default_rng(1).integers(runner.vocab_size, size=60).tolist()
    made = []
    engine = Engine(runner, config)
    for length, samples in ((40, 1), (53, 2), (45, 1)):
        params = SamplingParams(max_tokens=8, ignore_eos=True, n=samples, temperature=0.7 * (samples - 1))
        made.append(factory.make({"prompt_token_ids": ids[:length]}, params))
        for sequence in made[-1].sequences:
            engine.add(sequence)
        if config is PLAIN:
            while engine.has_work:
                engine.step()
    while engine.has_work:
        engine.step()
    return [list(sequence.output_token_ids) for request in made for sequence in request.sequences]


@pytest.mark.slow
def test_company_prefixes_and_copies_change_no_token(runner: Runner) -> None:
    alone = generate(runner, PLAIN)
    assert generate(runner, TOGETHER) == alone
    assert generate(runner, TOGETHER) == alone  # from blocks that the first run has left


@pytest.mark.slow
def test_streamed_layers_give_the_same_tokens(runner: Runner) -> None:
    mapped = new_runner(models.build(gguf.open(TINY / "llama.gguf"), mapped=True), streamed=True)
    one_by_one = EngineConfig(max_num_seqs=4, max_num_batched_tokens=32, async_scheduling=False)
    assert generate(mapped, one_by_one) == generate(runner, TOGETHER)


def pointers(runner: Runner) -> list[int]:
    return [array.unsafe_buffer_pointer() for array in jax.tree.leaves(runner.cache)]


@pytest.mark.slow
def test_steps_and_copies_happen_in_place(runner: Runner) -> None:
    before = pointers(runner)
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=LENGTH, seed=3)
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    request = factory.make({"prompt_token_ids": list(range(60))}, params)
    engine = Engine(runner, PLAIN)
    engine.add(request.sequences[0])
    while engine.has_work:
        engine.step()
        assert pointers(runner) == before
    held = [np.array(array) for array in jax.tree.leaves(runner.cache)]
    runner.copy([BlockCopy(group=0, source=3, target=7), BlockCopy(group=0, source=7, target=9)])
    assert pointers(runner) == before
    for old, new in zip(held, jax.tree.leaves(runner.cache), strict=True):
        assert old[3].any()
        old[[7, 9]] = old[3]
        np.testing.assert_array_equal(new, old)


def test_memory_is_sized_by_codes_and_scales() -> None:
    model = models.build(gguf.open(TINY / "llama.gguf"), abstract=True)
    spec = model.cache_spec()
    for layer in spec:
        a_position = 2 * layer.num_kv_heads * (layer.head_dim + 4)
        assert kv_cache_bytes(layer.array(3, BLOCK, "q8_0")) == 3 * BLOCK * a_position
    (coded,), (floats,) = (group_sizes(spec, BLOCK, dtype, ahead=32) for dtype in ("q8_0", "float32"))
    head_dim = spec[0].head_dim
    assert coded.block_bytes * 4 * head_dim == floats.block_bytes * (head_dim + 4)
