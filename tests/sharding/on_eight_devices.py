"""Runs models on eight devices of one process and compares them with one; test_sharding_runs.py starts it."""

import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
import tiny_chat

import cpu_kernels
from realm_jax import LLM, MeshConfig, SamplingParams
from realm_jax.quant import QTensor

TINY = Path(__file__).parents[1] / "data" / "tiny"
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, logprobs=2, ignore_eos=True)
MESHES = {
    "tensor2": MeshConfig(tensor=2),
    "tensor3": MeshConfig(tensor=3),
    "tensor4": MeshConfig(tensor=4),
    "data2": MeshConfig(data=2),
    "expert2": MeshConfig(expert=2),
    "data2-tensor2": MeshConfig(data=2, tensor=2),
    "all2": MeshConfig(data=2, tensor=2, expert=2),
}
COLLECTIVE = re.compile(r"= \(?(\w+)\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)\(")
COPY = re.compile(r"= \w+\[([\d,]+)\]\S* copy\(")
native = pytest.mark.skipif(not cpu_kernels.is_available(), reason=str(cpu_kernels.why_unavailable()))


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in Q4_0: its two heads of keys and, but for one block of three, its matrices divide by two."""
    path = tmp_path_factory.mktemp("sharding") / "tiny.gguf"
    return tiny_chat.write(path, matrices=gguf.GGMLQuantizationType.Q4_0)


@functools.cache
def load(path: Path, implementation: str, mesh: str | None) -> LLM:
    """A small cache in small blocks, so that sequences span several."""
    options: dict[str, Any] = {"max_model_len": 112, "max_num_seqs": 4, "block_size": 16, "quiet": True}
    return LLM(path, implementation=implementation, mesh=None if mesh is None else MESHES[mesh], **options)


def prompts(llm: LLM) -> list[Any]:
    rng = np.random.default_rng(0)
    return [{"prompt_token_ids": rng.integers(llm.config.vocab_size, size=n).tolist()} for n in (5, 40, 17)]


@functools.cache
def generated(path: Path, implementation: str, mesh: str | None) -> list[tuple[Any, Any]]:
    """Tokens and log-probabilities that three prompts are continued with, greedily and together."""
    llm = load(path, implementation, mesh)
    outputs = [request.outputs[0] for request in llm.generate(prompts(llm), GREEDY, use_tqdm=False)]
    return [(output.token_ids, output.logprobs) for output in outputs]


@functools.cache
def logits(path: Path, implementation: str, mesh: str | None) -> np.ndarray:
    """The logits along one prompt."""
    llm = load(path, implementation, mesh)
    return llm.logits(prompts(llm)[1]["prompt_token_ids"])


def rounding(llm: LLM) -> float:
    """How far float32 logits may move, as a fraction of the largest, if every sum is taken in another order.

    A sum of K products in any order is within K u of the exact one, as a fraction of the products' sizes (Higham,
    2002, section 4.2); two orders differ by twice that. A layer has four sums in a row - to queries, over keys, to the
    stream, inside the feed-forward block twice - and each begins with a norm, which keeps fractions what they are.
    """
    config = llm.config
    longest = max(config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return 2 * longest * float(np.finfo(np.float32).eps) / 2 * (5 * config.num_layers + 1)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("llama", "tensor4"),  # more parts than heads of keys
        ("llama", "data2"),
        ("gemma3", "tensor2"),
        ("phi3", "data2-tensor2"),  # fused projections
        ("olmo2", "tensor2"),  # a norm over all heads
        ("gpt_oss_mxfp4", "all2"),
    ],
)
def test_the_reference_differs_by_the_order_of_its_sums(name: str, mesh: str) -> None:
    """Sums of XLA depend on the shapes of what is summed, so splitting rows alone may change last bits too."""
    path = TINY / f"{name}.gguf"
    alone, shared = logits(path, "xla", None), logits(path, "xla", mesh)
    assert np.abs(shared - alone).max() <= rounding(load(path, "xla", None)) * np.abs(alone).max()


def test_the_reference_generates_the_same_tokens(chat: Path) -> None:
    alone, shared = generated(chat, "xla", None), generated(chat, "xla", "data2-tensor2")
    assert [tokens for tokens, _ in shared] == [tokens for tokens, _ in alone]


@native
@pytest.mark.parametrize("mesh", ["tensor2", "tensor4", "data2", "data2-tensor2"])
def test_native_kernels_give_equal_bits(chat: Path, mesh: str) -> None:
    """Tiles are split by rows only, and the kernels compute each row and each token by itself."""
    assert generated(chat, "cpu", mesh) == generated(chat, "cpu", None)
    np.testing.assert_array_equal(logits(chat, "cpu", mesh), logits(chat, "cpu", None))


@native
def test_smollm2_gives_equal_bits(smollm2_path: Path) -> None:
    """Nine heads, three of keys: three devices have whole heads."""
    assert generated(smollm2_path, "cpu", "tensor3") == generated(smollm2_path, "cpu", None)


def programs(llm: LLM) -> Iterator[str]:
    return (program.result().as_text() for program in llm.runner._programs.values())


def pieces(array: jax.Array) -> list[tuple[int, ...]]:
    """The shapes that a split array has in a program: of the whole, and of a device's part."""
    return [array.shape, array.addressable_shards[0].data.shape]


@pytest.mark.parametrize(
    ("implementation", "mesh"),
    [("xla", "data2-tensor2"), pytest.param("cpu", "data2-tensor2", marks=native)],
)
def test_weights_and_caches_stay_where_they_are(chat: Path, implementation: str, mesh: str) -> None:
    generated(chat, implementation, mesh)
    llm = load(chat, implementation, mesh)
    cache = {",".join(map(str, shape)) for layer in llm.runner.cache for shape in pieces(layer)}
    texts = list(programs(llm))
    assert len(texts) >= 2
    for text in texts:
        moved = COLLECTIVE.findall(text)
        assert moved
        assert not [kind for kind, _ in moved if kind == "u8"]
        assert not cache & {dims for _, dims in moved}
        assert not cache & set(COPY.findall(text))


def test_experts_stay_where_they_are() -> None:
    path = TINY / "gpt_oss_mxfp4.gguf"
    logits(path, "xla", "all2")
    moved = [found for text in programs(load(path, "xla", "all2")) for found in COLLECTIVE.findall(text)]
    assert moved
    assert not [kind for kind, _ in moved if kind == "u8"]


def addresses(llm: LLM) -> list[int]:
    return [shard.data.unsafe_buffer_pointer() for layer in llm.runner.cache for shard in layer.addressable_shards]


def test_caches_are_written_in_place(chat: Path) -> None:
    llm = load(chat, "xla", "data2-tensor2")
    before = addresses(llm)
    llm.generate({"prompt_token_ids": [1, 2, 3]}, GREEDY, use_tqdm=False)
    assert addresses(llm) == before


def test_a_cache_of_8_bits_is_split_by_heads(chat: Path) -> None:
    """Codes and scales alike, in place; a head's codes do not depend on where it lies."""
    options: dict[str, Any] = {"max_model_len": 112, "max_num_seqs": 4, "block_size": 16, "quiet": True}
    options |= {"implementation": "xla", "kv_cache_dtype": "q8_0"}
    alone, shared = LLM(chat, **options), LLM(chat, mesh=MESHES["data2-tensor2"], **options)
    before = [a.unsafe_buffer_pointer() for layer in jax.tree.leaves(shared.runner.cache) for a in local(layer)]
    for array in jax.tree.leaves(shared.runner.cache):
        assert array.shape[3] == 2 and {a.shape[3] for a in local(array)} == {1}
    tokens = [
        [r.outputs[0].token_ids for r in llm.generate(prompts(llm), GREEDY, use_tqdm=False)] for llm in (alone, shared)
    ]
    assert tokens[0] == tokens[1]
    assert before == [a.unsafe_buffer_pointer() for layer in jax.tree.leaves(shared.runner.cache) for a in local(layer)]


def local(array: jax.Array) -> list[jax.Array]:
    return [shard.data for shard in array.addressable_shards]


@pytest.mark.parametrize("implementation", ["xla", pytest.param("cpu", marks=native)])
def test_a_device_holds_its_part_of_the_stored_weights(chat: Path, implementation: str) -> None:
    """Everything but the vectors, and what is split nowhere, is halved; nothing is kept in another form."""
    alone, shared = load(chat, implementation, None), load(chat, implementation, "tensor2")
    whole = sum(leaf.nbytes for leaf in alone.runner.leaves)
    vectors = sum(leaf.nbytes for leaf in alone.runner.leaves if leaf.dtype == np.float32)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in shared.runner.leaves)
    assert held == vectors + (whole - vectors) // 2
    weights = jax.tree.leaves(shared.model, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    assert all(leaf.data.dtype == np.uint8 for leaf in weights if isinstance(leaf, QTensor) and not leaf.is_dense)
    layer = shared.runner.cache[0]
    assert math.prod(layer.addressable_shards[0].data.shape) == layer.size // 2


def test_edits_and_captures_see_whole_activations(chat: Path) -> None:
    """What is captured on a mesh has the shapes and, up to rounding, the values of one device."""
    prompt = {"prompt_token_ids": list(range(1, 20))}
    points = ("layers.1.attn.q", "layers.1.attn.heads", "layers.0.mlp.hidden", "layers.1.attn.pattern")
    alone, shared = (load(chat, "xla", mesh).capture(prompt, points) for mesh in (None, "data2-tensor2"))
    for point in points:
        ours, theirs = np.asarray(shared[point]), np.asarray(alone[point])
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= rounding(load(chat, "xla", None)) * np.abs(theirs).max()


def test_a_mesh_that_does_not_fit_is_refused(chat: Path) -> None:
    with pytest.raises(ValueError, match=r"expert must be 1 for a model without experts, got 2"):
        load(chat, "xla", "expert2")
    with pytest.raises(ValueError, match=r"expert must divide the 5 experts of blk.0.ffn_gate_exps.weight, got 2"):
        load(TINY / "mixtral.gguf", "xla", "expert2")
    with pytest.raises(ValueError, match=r"needs 9 devices, JAX has 8"):
        MeshConfig(data=3, tensor=3).mesh()
