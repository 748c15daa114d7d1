"""Runs interpreted Pallas kernels on eight devices of one process; test_pallas_mesh.py starts it."""

import functools
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_chat
from matmul_inputs import BFLOAT16, FLOAT32, blocks_of, product

from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul import FORMATS
from realm_jax import LLM, MeshConfig, SamplingParams
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.ops.attention import AttentionSpec, cached_attention
from realm_jax.ops.kv_cache import kv_cache_array
from realm_jax.ops.paging import PagedBatch
from realm_jax.ops.projection import LinearMap, project
from realm_jax.ops.split import take_rows_of_parts
from realm_jax.quant import QTensor, dequantize, from_raw, take_rows
from realm_jax.sharding import named_sharding, split_counts, weight_split

TINY = Path(__file__).parents[1] / "data" / "tiny"
BACKENDS: tuple[Backend, ...] = ("triton", "tpu")
MESHES = {
    "tensor2": MeshConfig(tensor=2),
    "tensor4": MeshConfig(tensor=4),
    "data2": MeshConfig(data=2),
    "data2-tensor2": MeshConfig(data=2, tensor=2),
    "all2": MeshConfig(data=2, tensor=2, expert=2),
}
PARTS, ROWS, COLUMNS = 4, 24, 1024
# The names decide what is cut: rows of the first, columns of the second.
BY_ROWS, BY_COLUMNS = "blk.0.attn_q.weight", "blk.0.attn_output.weight"


def raw_of(kind: str, blocks: np.ndarray, columns: int = COLUMNS) -> RawTensor:
    return RawTensor("w", GGMLType[kind], (len(blocks), columns), np.ascontiguousarray(blocks).reshape(-1))


def placed(name: str, raw: RawTensor, layout: str) -> QTensor:
    """The weight over four devices, split by the rules."""
    mesh = MESHES["tensor4"].mesh()
    split = weight_split(name, from_raw(raw, layout=layout).units, mesh.shape)
    return from_raw(raw, named_sharding(mesh, split), layout=layout)


# Of all formats Q3_K has most to cut: two planes, two levels of scales, blocks of 256 weights.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kind",
    [kind if kind == "Q3_K" else pytest.param(kind, marks=pytest.mark.slow) for kind in FORMATS],
)
@pytest.mark.parametrize("name", [BY_ROWS, BY_COLUMNS])
def test_parts_are_the_rows_or_columns_of_the_weight(name: str, kind: str, backend: Backend) -> None:
    raw = raw_of(kind, blocks_of(kind, ROWS, COLUMNS))
    whole, cut = from_raw(raw, layout=backend), placed(name, raw, backend)
    decode = jax.jit(dequantize)
    weights = np.asarray(decode(whole))
    counts = split_counts(cut.split or (), MESHES["tensor4"].mesh().shape)
    assert counts == ((PARTS, 1) if name == BY_ROWS else (1, PARTS)) and cut.shape == whole.shape
    rows, columns = ROWS // counts[0], COLUMNS // counts[1]
    for device, shards in enumerate(zip(*(leaf.addressable_shards for leaf in cut.data), strict=True)):
        data = tuple(jax.device_put(shard.data, jax.devices()[0]) for shard in shards)
        part = QTensor(data, cut.ggml_type, backend, (rows, columns))
        first = (device * rows, 0) if name == BY_ROWS else (0, device * columns)
        np.testing.assert_array_equal(decode(part), weights[first[0] :, first[1] :][:rows, :columns])


def test_the_whole_of_what_was_packed_in_parts_is_refused() -> None:
    cut = placed(BY_ROWS, raw_of("Q4_0", blocks_of("Q4_0", ROWS, COLUMNS)), "tpu")
    ids, x = jnp.zeros(1, jnp.int32), jnp.ones((1, COLUMNS))
    for use in (dequantize, lambda w: take_rows(w, ids), lambda w: project(x, [linear(w)])):
        with pytest.raises(ValueError, match="a matrix in layout 'tpu' must be used part by part where it is split"):
            use(cut)


def linear(weight: QTensor) -> LinearMap:
    return LinearMap(weight=weight)


def on_mesh(function: Any, *operands: Any) -> np.ndarray:
    with jax.set_mesh(MESHES["tensor4"].mesh()):
        return np.asarray(jax.jit(function)(*operands))


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.slow), "tpu"])
def test_rows_that_are_split_give_the_bits_of_one_device(backend: Backend) -> None:
    """A kernel adds up a row's columns by themselves; lookup decodes the same numbers."""
    raw = raw_of("Q4_K", blocks_of("Q4_K", ROWS, 256), 256)
    whole, cut = from_raw(raw, layout=backend), placed(BY_ROWS, raw, backend)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 256)), jnp.float32)
    multiply = functools.partial(product_of, f"{backend}_interpreted")
    np.testing.assert_array_equal(on_mesh(multiply, x, linear(cut)), jax.jit(multiply)(x, linear(whole)))
    ids = jnp.asarray([0, 23, 7, 7], jnp.int32)
    looked_up = on_mesh(lambda w, ids: take_rows_of_parts(w, ids, jnp.float32), cut, ids)
    np.testing.assert_array_equal(looked_up, take_rows(whole, ids))


def product_of(implementation: str, x: jax.Array, one: LinearMap) -> jax.Array:
    return project(x, [one], implementation=implementation)[0]


@pytest.mark.parametrize("backend", ["triton", pytest.param("tpu", marks=pytest.mark.slow)])
def test_columns_that_are_split_give_the_sum_of_the_parts(backend: Backend) -> None:
    """Each part's product within the kernel's bound; their sum in float32 rounds as often as there are parts."""
    blocks = blocks_of("Q4_0", ROWS, COLUMNS)
    cut = placed(BY_COLUMNS, raw_of("Q4_0", blocks), backend)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, COLUMNS)), jnp.float32)
    y = on_mesh(functools.partial(product_of, f"{backend}_interpreted"), x, linear(cut))
    inner = np.split(blocks, PARTS, axis=1)
    exact, bound = zip(
        *(product("Q4_0", backend, own, part) for own, part in zip(jnp.split(x, PARTS, axis=1), inner, strict=True)),
        strict=True,
    )
    added = PARTS * FLOAT32 * sum(np.abs(e) + b for e, b in zip(exact, bound, strict=True))
    assert (np.abs(y - sum(exact)) <= sum(bound) + added).all()


@functools.cache
def load(path: Path, implementation: str, mesh: str | None) -> LLM:
    options: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 4, "block_size": 16, "quiet": True}
    return LLM(path, implementation=implementation, mesh=None if mesh is None else MESHES[mesh], **options)


@functools.cache
def generated(path: Path, implementation: str, mesh: str | None) -> list[list[int]]:
    """The tokens that four prompts are continued with, greedily and together."""
    llm = load(path, implementation, mesh)
    rng = np.random.default_rng(0)
    lengths = (5, 9, 3, 7)
    prompts: list[Any] = [{"prompt_token_ids": rng.integers(llm.config.vocab_size, size=n).tolist()} for n in lengths]
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    return [list(request.outputs[0].token_ids) for request in llm.generate(prompts, greedy, use_tqdm=False)]


@functools.cache
def logits(path: Path, implementation: str, mesh: str | None) -> np.ndarray:
    llm = load(path, implementation, mesh)
    return llm.logits(np.random.default_rng(0).integers(llm.config.vocab_size, size=24).tolist())


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in Q4_0 with two heads of keys; its MLP's three blocks divide by no mesh, so that rows are split."""
    path = tmp_path_factory.mktemp("mesh") / "tiny.gguf"
    return tiny_chat.write(path, matrices=gguf.GGMLQuantizationType.Q4_0)


@pytest.mark.parametrize(
    ("implementation", "mesh"),
    [
        ("tpu_interpreted", "tensor2"),
        pytest.param("tpu_interpreted", "data2-tensor2", marks=pytest.mark.slow),
        pytest.param("triton_interpreted", "tensor2", marks=pytest.mark.slow),
        pytest.param("triton_interpreted", "tensor4", marks=pytest.mark.slow),  # queries are shared
        pytest.param("triton_interpreted", "data2-tensor2", marks=pytest.mark.slow),
    ],
)
def test_the_engine_generates_the_tokens_of_one_device(chat: Path, implementation: str, mesh: str) -> None:
    assert generated(chat, implementation, mesh) == generated(chat, implementation, None)
    shared = load(chat, implementation, mesh)
    layouts = {leaf.layout for leaf in jax.tree.leaves(shared.model, is_leaf=is_quantised) if is_quantised(leaf)}
    assert implementation.removesuffix("_interpreted") in layouts
    pool = shared.runner.cache[0]
    assert pool.addressable_shards[0].data.shape[1] == (2 if mesh == "tensor4" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_8_bits_lies_on_the_mesh_too(chat: Path, backend: Backend) -> None:
    """Codes and scales of a head are where its queries are, and do not depend on it."""
    options: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 4, "block_size": 32, "quiet": True}
    options |= {"implementation": f"{backend}_interpreted", "kv_cache_dtype": "q8_0"}
    alone, shared = LLM(chat, **options), LLM(chat, mesh=MESHES["data2-tensor2"], **options)
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    prompts: list[Any] = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": list(range(20))}]
    tokens = [
        [r.outputs[0].token_ids for r in llm.generate(prompts, greedy, use_tqdm=False)] for llm in (alone, shared)
    ]
    assert tokens[0] == tokens[1]
    for array in jax.tree.leaves(shared.runner.cache):
        assert array.shape[1] == 2 and {shard.data.shape[1] for shard in array.addressable_shards} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_and_its_derivatives_are_those_of_one_device(kv_heads: int, backend: Backend) -> None:
    """Four devices with a head of keys each share the queries of two sequences, or two of them those of two heads.

    A query's sums are its own: only XLA may take them in another order, 16 channels and up to 5 keys, backwards twice.
    """
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(rng.normal(size=(8, n, 16)), jnp.float32) for n in (4, kv_heads, kv_heads))
    int32 = functools.partial(jnp.asarray, dtype=jnp.int32)
    batch = PagedBatch(
        positions=int32([0, 1, 2, 0, 1, 2, 3, 4]),
        slots=int32([16, 17, 18, 32, 33, 34, 35, 36]),
        query_start=int32([0, 3, 8]),
        context_lens=int32([3, 5]),
        block_table=int32([[1], [2]]),
    )
    spec, implementation = AttentionSpec(scale=0.25, window=3), f"{backend}_interpreted"
    array = kv_cache_array(3, 16, (kv_heads, 16), dtype="float32", implementation=implementation)
    cache = jnp.zeros(array.shape, array.dtype)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return cached_attention((q, k, v), cache, batch, spec, implementation=implementation)[0]

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(out)

    alone = jax.tree.map(np.asarray, run(q, k, v))
    jax.clear_caches()
    with jax.set_mesh(MESHES["data2-tensor2"].mesh()):
        shared = jax.tree.map(np.asarray, run(q, k, v))
    for one, other in zip(alone, shared, strict=True):
        assert np.abs(one - other).max() <= 3 * 2 * (16 + 5) * FLOAT32 * np.abs(one).max()


def is_quantised(leaf: Any) -> bool:
    return isinstance(leaf, QTensor) and not leaf.is_dense


# Experts in MXFP4 by windows, sinks and biases; windows and head_dims that fill no registers.
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "mesh"), [("gpt_oss_mxfp4", "all2"), ("gemma3", "data2-tensor2")])
def test_logits_differ_by_rounding(name: str, mesh: str, backend: Backend) -> None:
    """Weights, or activations as two bfloat16, and probabilities in attention are rounded to 2^-8 at most each.

    A part of a sum is rounded as the whole sum is, and other numbers of rows may take another kernel.
    """
    path, implementation = TINY / f"{name}.gguf", f"{backend}_interpreted"
    alone, shared = logits(path, implementation, None), logits(path, implementation, mesh)
    roundings = 9 * load(path, implementation, None).config.num_layers
    assert np.abs(shared - alone).max() <= roundings * BFLOAT16 * np.abs(alone).max()
