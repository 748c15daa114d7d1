"""The rules that the speed of everything rests on: few leaves, no copies of weights or caches, no recompilation."""

import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from realm_jax import gguf, models
from realm_jax.engine.batch import SequenceSlice, pack_batch, unpack_batch
from realm_jax.engine.blocks import BlockCopy
from realm_jax.engine.engine import Engine, EngineConfig
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence, token_array
from realm_jax.engine.stats import StepTrace
from realm_jax.models import CausalLM
from realm_jax.nn import NO_TAPS, Recorder, Weight
from realm_jax.quant import from_raw
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker

TINY = Path(__file__).parents[1] / "data" / "tiny"
BLOCKS, BLOCK = 512, 16


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return models.build(gguf.open(TINY / "llama.gguf"))


@pytest.fixture
def runner(model: CausalLM) -> Runner:
    size = CacheSize(max_model_len=128, num_blocks=(BLOCKS,))
    return Runner(model, size, block_size=BLOCK, kv_cache_dtype="float32")


def sequence(tokens: list[int], max_tokens: int) -> Sequence:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    request = SamplingRequest(params=params, seed=0, prompt_length=len(tokens), token_ids=token_array(tokens))
    return Sequence(sampling=request, max_tokens=max_tokens, stop=StopChecker(params), detokenizer=None)


def test_a_weight_is_one_leaf_in_the_file_s_own_bytes(smollm2_path: Path) -> None:
    file = gguf.open(smollm2_path)
    model = models.build(file)
    weights = nnx.state(model, Weight)
    leaves = jax.tree.leaves(weights)
    matrices = [raw for raw in file.tensors.values() if len(raw.shape) == 2]
    assert len(leaves) == len(matrices)
    assert sum(leaf.nbytes for leaf in leaves) == sum(raw.nbytes for raw in matrices)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert held <= 1.10 * sum(raw.nbytes for raw in file.tensors.values())


def test_a_step_has_few_leaves(smollm2_path: Path) -> None:
    runner = Runner(
        models.build(gguf.open(smollm2_path), abstract=True),
        CacheSize(max_model_len=32, num_blocks=(2,)),
        block_size=BLOCK,
        kv_cache_dtype="float32",
    )
    # 30 layers of 7 matrices, 2 norms and a cache, then embeddings, the last norm and the rope's frequencies.
    assert len(runner.leaves) + len(runner.cache) == 30 * (7 + 2 + 1) + 3


def test_an_aligned_weight_stays_a_view_of_the_file(smollm2_path: Path) -> None:
    aligned = [r for r in gguf.open(smollm2_path).tensors.values() if r.data.ctypes.data % 64 == 0]
    assert aligned
    for raw in aligned[:8]:
        assert from_raw(raw).data.unsafe_buffer_pointer() == raw.data.ctypes.data


def test_ten_steps_leave_cache_and_weights_where_they_are(runner: Runner) -> None:
    def pointers() -> list[int]:
        return [array.unsafe_buffer_pointer() for array in (*runner.cache, *runner.leaves)]

    engine = Engine(runner, EngineConfig(max_num_seqs=2))
    engine.add(sequence([1, 2, 3], max_tokens=12))
    engine.step()
    before = pointers()
    for _ in range(10):
        engine.step()
        assert pointers() == before


def test_no_copy_of_a_cache_or_a_weight_in_the_compiled_step(runner: Runner) -> None:
    slices = [SequenceSlice(tokens=[5], start=40, block_tables=(range(1, 9),), rows=(0,))]
    shape = runner.buckets.shape(slices)

    def step(leaves: list[jax.Array], cache: list[jax.Array], buffer: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        output = runner._model(leaves)(unpack_batch(buffer, shape), cache)
        return output.logits, output.cache

    buffer = pack_batch(slices, shape, BLOCK)
    compiled = jax.jit(step, donate_argnums=1).lower(runner.leaves, runner.cache, buffer).compile()
    cache_bytes = runner.cache[0].nbytes
    copied = [
        np.prod([int(n) for n in dims.split(",")]) * 4
        for dims in re.findall(r"= f32\[([\d,]+)\]\S* copy\(", compiled.as_text())
    ]
    assert max(copied, default=0) < min(cache_bytes, 128 * 40 * 4)
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == sum(cache.nbytes for cache in runner.cache)
    assert memory.temp_size_in_bytes < cache_bytes


def test_copying_a_block_copies_no_cache(runner: Runner) -> None:
    rng = np.random.default_rng(0)
    runner.cache = [jnp.asarray(rng.random(layer.shape, np.float32)) for layer in runner.cache]
    before, pointers = [np.array(c) for c in runner.cache], [c.unsafe_buffer_pointer() for c in runner.cache]
    runner.copy([BlockCopy(group=0, source=3, target=7), BlockCopy(group=0, source=7, target=9)])
    assert [c.unsafe_buffer_pointer() for c in runner.cache] == pointers
    for old, new in zip(before, runner.cache, strict=True):
        expected = old.copy()
        expected[[7, 9]] = old[3]
        np.testing.assert_array_equal(new, expected)
    memory = runner._program(("copy", 2), runner._copying).memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < runner.cache[0].nbytes // 8


def test_every_launch_is_traced(runner: Runner) -> None:
    file = io.StringIO()
    engine = Engine(runner, EngineConfig(max_num_seqs=2), trace=StepTrace(file))
    engine.add(sequence([1, 2, 3], max_tokens=4))
    while engine.has_work:
        engine.step()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["parts"] for line in lines] == [
        [[0, 3, True, 0]],
        [[3, 1, True, 0]],
        [[4, 1, True, 0]],
        [[5, 1, True, 0]],
    ]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and lines[0]["free_blocks"] == [BLOCKS - 2]
    assert engine.stats.steps == 4 and engine.stats.generated_tokens == 4 and engine.stats.prompt_tokens == 3


def test_a_steady_decode_compiles_nothing(runner: Runner) -> None:
    engine = Engine(runner, EngineConfig(max_num_seqs=2))

    def run(lengths: list[int]) -> None:
        for length in lengths:
            engine.add(sequence(list(range(length)), max_tokens=20))
        while engine.has_work:
            engine.step()

    run([5, 9])
    compiled = runner.compilations
    run([7, 4])
    run([12, 3])
    assert runner.compilations == compiled


def test_layers_can_be_run_one_by_one(model: CausalLM, runner: Runner) -> None:
    slices = [SequenceSlice(tokens=list(range(20)), start=0, block_tables=(range(1, 9),), rows=range(20))]
    shape = runner.buckets.shape(slices)
    batch = unpack_batch(jnp.asarray(pack_batch(slices, shape, BLOCK)), shape)
    tap = Recorder(NO_TAPS)
    x = model.embed(batch)
    tables = [rope(batch.positions) for rope in model.ropes]
    for layer, cache in zip(model.layers, runner.new_cache(BLOCKS), strict=True):
        x, _ = layer(x, cache, batch.paged(layer.config.group), tables[layer.config.rope], tap)
    logits = model.head(x, batch.logits_indices, tap)
    whole = model(batch, runner.new_cache(BLOCKS)).logits
    # The same float32 operations, fused differently: a few units in the last place of logits of about 5.
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_equal_layers_are_traced_once(smollm2_path: Path) -> None:
    model = models.build(gguf.open(smollm2_path), abstract=True)
    graphs = {(nnx.split(layer)[0], jax.tree.structure(nnx.split(layer)[1])) for layer in model.layers}
    # The file mixes Q4_1 with a few matrices of other types.
    assert len(graphs) <= 4


def test_an_exported_step_equals_the_jitted_one(model: CausalLM, runner: Runner) -> None:
    slices = [SequenceSlice(tokens=list(range(20)), start=0, block_tables=(range(1, 9),), rows=range(20))]
    shape = runner.buckets.shape(slices)

    def forward(leaves: list[jax.Array], cache: list[jax.Array], buffer: jax.Array) -> jax.Array:
        return runner._model(leaves)(unpack_batch(buffer, shape), cache).logits

    operands = (runner.leaves, runner.new_cache(16), jnp.asarray(pack_batch(slices, shape, BLOCK)))
    exported = jax.export.export(jax.jit(forward), platforms=["cpu", "tpu", "cuda"])(*operands)
    assert "custom_call" not in exported.mlir_module().replace("@Sharding", "").replace("@shape_assertion", "")
    np.testing.assert_array_equal(exported.call(*operands), jax.jit(forward)(*operands))
