"""Weights that stream through a window: the same numbers as in memory, few programs, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_kernels
from realm_jax import gguf, models
from realm_jax.engine import Engine, EngineConfig, RequestFactory, Runner, scoring
from realm_jax.engine.batch import SequenceSlice
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import StepInput
from realm_jax.engine.streaming import StreamingRunner
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.sampling import SamplingParams, pack, plan_for

TINY = Path(__file__).parents[1] / "data" / "tiny"
LENGTH, BLOCK = 96, 16
# Soft caps; rotations and block tables of two kinds; experts, sinks and biases; an untied head.
FAMILIES = ("gemma2", "gemma3", "gpt_oss_mxfp4", "llama")
ONE_AT_A_TIME = EngineConfig(max_num_seqs=4, max_num_batched_tokens=32, async_scheduling=False)
# The same float32 operations, fused differently by XLA, as a fraction of the largest |logit|: a few units in the last
# place in each of some hundred operations.
FUSION = 1e-5


def options(dtype: str = "float32") -> dict[str, Any]:
    return {"block_size": BLOCK, "kv_cache_dtype": dtype}


def size(model: models.CausalLM) -> CacheSize:
    groups = 1 + max(layer.group for layer in model.cache_spec())
    return CacheSize(max_model_len=LENGTH, num_blocks=(40,) * groups)


def least_bytes(model: models.CausalLM) -> int:
    with pytest.raises(ValueError, match=r"max_weight_memory must be at least \d+ bytes") as refused:
        StreamingRunner(model, size(model), max_weight_memory=0, **options())
    return int(str(refused.value).split("at least ")[1].split()[0])


def streaming(model: models.CausalLM, memory: int, dtype: str = "float32") -> StreamingRunner:
    return StreamingRunner(model, size(model), max_weight_memory=memory, **options(dtype))


def prompt(runner: Runner, length: int) -> list[int]:
    return np.random.default_rng(length).integers(runner.vocab_size, size=length).tolist()


def generate(runner: Runner, count: int = 12, **params: Any) -> list[list[int]]:
    """Two prompts together, one of them in two chunks."""
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=LENGTH, seed=3)
    sampling = SamplingParams(max_tokens=count, ignore_eos=True, **{"temperature": 0.0, **params})
    made = [factory.make({"prompt_token_ids": prompt(runner, n)}, sampling) for n in (5, 40)]
    engine = Engine(runner, ONE_AT_A_TIME)
    for request in made:
        engine.add(request.sequences[0])
    while engine.has_work:
        engine.step()
    return [list(request.sequences[0].output_token_ids) for request in made]


@pytest.fixture(scope="module", params=FAMILIES)
def runners(request: pytest.FixtureRequest) -> tuple[Runner, StreamingRunner, StreamingRunner]:
    """A model in memory; in the least window; and in one that holds all of it."""
    file = gguf.open(TINY / f"{request.param}.gguf")
    whole, mapped = models.build(file), models.build(file, mapped=True)
    runners = streaming(mapped, least_bytes(mapped)), streaming(mapped, 10**9)
    assert len(runners[0].window.pinned) <= 1 and not runners[1].window.streamed_bytes
    return Runner(whole, size(whole), **options()), *runners


def test_logits_do_not_depend_on_the_window(runners: tuple[Runner, StreamingRunner, StreamingRunner]) -> None:
    resident, least, all_of_it = runners
    ids = prompt(resident, 60)
    expected = scoring.sequence_logits(resident, ids, chunk=32)
    streamed = scoring.sequence_logits(least, ids, chunk=32)
    np.testing.assert_array_equal(scoring.sequence_logits(all_of_it, ids, chunk=32), streamed)
    assert np.abs(streamed - expected).max() <= FUSION * np.abs(expected).max()


def test_tokens_are_those_of_the_model_in_memory(runners: tuple[Runner, StreamingRunner, StreamingRunner]) -> None:
    resident, least, _ = runners
    assert generate(least) == generate(resident)


def test_activations_are_captured_and_edited(runners: tuple[Runner, StreamingRunner, StreamingRunner]) -> None:
    resident, least, _ = runners
    assert scoring.activation_points(least) == scoring.activation_points(resident)
    prompts = [prompt(resident, 9), prompt(resident, 14)]
    taps = Taps.of(("**",), {"layers.0.mlp.out": _halved, "final_norm": _halved})
    for own, other in zip(*(scoring.capture(r, prompts, [[0, 8], [13]], taps) for r in (least, resident)), strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            scale = max(np.abs(other[name]).max(), 1e-3)
            np.testing.assert_allclose(value, other[name], rtol=0, atol=FUSION * scale, err_msg=name)


def _halved(x: Any) -> Any:
    return x / 2


@pytest.fixture(scope="module")
def llama() -> models.CausalLM:
    return models.build(gguf.open(TINY / "llama.gguf"), mapped=True)


@pytest.fixture(scope="module")
def runner(llama: models.CausalLM) -> StreamingRunner:
    return streaming(llama, least_bytes(llama))


def test_equal_layers_share_programs_and_a_steady_state_compiles_none(runner: StreamingRunner) -> None:
    generate(runner)
    compiled = runner.compilations
    assert generate(runner) == generate(runner)
    assert runner.compilations == compiled


def test_a_prepared_step_compiles_nothing_more(llama: models.CausalLM) -> None:
    runner = streaming(llama, least_bytes(llama))
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=LENGTH, seed=0)
    sequence = factory.make({"prompt_token_ids": [1, 2]}, SamplingParams(temperature=0.7, seed=5)).sequences[0]
    given = step_input(runner, sequence, [3])
    for done in runner.prepare([runner.step_key(given, NO_TAPS)]):
        done.result()
    compiled = runner.compilations
    output, previous, _ = runner.step(given)
    assert output is not None and previous[0] == output.tokens[0]
    assert compiled == runner.compilations > 0
    # A token that only the device knows by the number of its row.
    again = dataclasses.replace(step_input(runner, sequence, [-1]), previous=np.asarray([3, 0], np.int32))
    assert runner.step(again)[0].tokens[0] == output.tokens[0]


def step_input(runner: StreamingRunner, sequence: Any, tokens: list[int]) -> StepInput:
    plan = plan_for([sequence.params])
    slices = [SequenceSlice(tokens=tokens, start=1, block_tables=((1,),), rows=(0,))]
    return StepInput(
        slices=slices,
        shape=runner.buckets.shape(slices),
        previous=np.zeros(2, np.int32),
        sampling=pack([sequence.sampling], plan, size=1, lengths=[2]),
        plan=plan,
    )


def test_several_steps_in_a_launch_are_refused(runner: StreamingRunner) -> None:
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=LENGTH, seed=0)
    sequence = factory.make({"prompt_token_ids": [1]}, SamplingParams()).sequences[0]
    with pytest.raises(ValueError, match="decode_steps must be 1 where weights stream through memory, got 4"):
        runner.step(dataclasses.replace(step_input(runner, sequence, [3]), steps=4))


def test_a_step_that_failed_leaves_a_runner_that_works(
    runner: StreamingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, enter = generate(runner), runner.window.enter

    def failing(part: int) -> Any:
        if part == 1:
            raise OSError("the disk is gone")
        return enter(part)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(runner.window, "enter", failing)
        generate(runner)
    assert generate(runner) == expected


needs_kernels = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


@needs_kernels
def test_native_kernels_give_the_same_bits_as_in_memory(smollm2_path: Path) -> None:
    file = gguf.open(smollm2_path)
    whole, mapped = (models.build(file, implementation="cpu", mapped=flag) for flag in (False, True))
    resident = Runner(whole, size(whole), **options("float16"))
    third = int(0.3 * sum(raw.nbytes for raw in file.tensors.values()))
    runner = streaming(mapped, third, "float16")
    assert 0 < len(runner.window.pinned) < 15  # of 30 layers and 14 pieces of the head
    ids = prompt(resident, 70)
    expected = scoring.sequence_logits(resident, ids, chunk=64)
    np.testing.assert_array_equal(scoring.sequence_logits(runner, ids, chunk=64), expected)
    assert generate(runner) == generate(resident)
    assert generate(runner, temperature=0.9, top_p=0.9, seed=4) == generate(
        resident, temperature=0.9, top_p=0.9, seed=4
    )
