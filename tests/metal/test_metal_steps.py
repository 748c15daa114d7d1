"""Whole steps lowered for Apple GPUs without one: the kernels they hold, and that the plug-in knows all of the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import metal_platform
import pytest
from aot.aot_models import open_without_data
from flax import nnx
from lowered import Lowered, lower_for_metal

from realm_jax import gguf, models
from realm_jax.engine.batch import BatchShape, unpack_batch
from realm_jax.engine.steps import Limits, Row, Sampling, copy_blocks, decode_in_a_row, sample_logits, sample_once
from realm_jax.gguf import GGUFFile
from realm_jax.models import CausalLM
from realm_jax.quant import affine
from realm_jax.sampling import SamplingParams, SamplingRequest, pack, plan_for

DATA = Path(__file__).parents[1] / "data"
ACCEPTED = frozenset((DATA / "metal" / "jax_mps_ops.txt").read_text().split())
"""Every operation and kernel that the parser of jax-mps 0.11.1 takes."""

DTYPES = frozenset({"i1", "i8", "i16", "i32", "ui8", "ui16", "ui32", "f16", "bf16", "f32"})
"""Of MLX's types those that Metal computes in without emulation."""

BLOCKS, BLOCK = 65, 64
DECODE = BatchShape(tokens=4, sequences=4, pages=8, rows=4, groups=2)
PREFILL = BatchShape(tokens=256, sequences=1, pages=8, rows=1, groups=2)

PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "candidates": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    "full": SamplingParams(temperature=0.8, logprobs=5),
    "typical": SamplingParams(temperature=0.8, typical_p=0.9),
    "penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1, presence_penalty=0.5, logit_bias={3: 1.0}),
}


@pytest.fixture(scope="module", autouse=True)
def platform() -> Iterator[None]:
    why = metal_platform.register()
    if why is not None:
        pytest.skip(why)
    with jax.numpy_rank_promotion("allow"):  # the plug-in's own functions rely on it
        yield


@pytest.fixture(scope="module", params=["smollm2-135m-q4_1", "gemma3-270m-q4_k_m", "llama-3-8b-q4_k_m"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return open_without_data(request.param, tmp_path_factory.mktemp("models"))


def assert_accepted(lowered: Lowered) -> None:
    assert not lowered.names.keys() - ACCEPTED
    assert not lowered.dtypes - DTYPES


def build(file: GGUFFile) -> tuple[CausalLM, Any, list[jax.ShapeDtypeStruct]]:
    """The model, its state and its caches, as shapes, in the types that `LLM` takes on an accelerator."""
    model = models.build(file, dtype=jnp.bfloat16, implementation="mps", abstract=True)
    caches = [layer.array(BLOCKS, BLOCK, "bfloat16") for layer in model.cache_spec()]
    return model, nnx.split(model)[1], caches


def operands(params: SamplingParams, rows: int) -> tuple[Any, ...]:
    """The newest tokens, the numbers of sampling and the limits of a step of `rows` sequences."""
    plan = plan_for([params])
    requests = [SamplingRequest(params=params, seed=1, prompt_length=1, token_ids=[1])] * rows
    given = (jnp.zeros(rows, jnp.int32), pack(requests, plan), Limits.of([8] * rows, [], rows))
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), given)


def lower_step(file: GGUFFile, shape: BatchShape, name: str, steps: int = 1) -> Lowered:
    model, state, caches = build(file)
    graphdef = nnx.split(model)[0]
    sampling = Sampling(plan=plan_for([PARAMS[name]]), implementation="mps")
    row = Row(steps=steps, vocab_size=model.config.vocab_size, block_size=BLOCK)

    def step(state: Any, caches: Any, buffer: jax.Array, operands: Any) -> Any:
        batch, run = unpack_batch(buffer, shape), nnx.merge(graphdef, state)
        if steps == 1:
            return sample_once(run, batch, caches, operands, sampling)
        return decode_in_a_row(run, batch, caches, operands, sampling, row)

    buffer = jax.ShapeDtypeStruct((shape.size,), jnp.int32)
    return lower_for_metal(step, state, caches, buffer, operands(PARAMS[name], shape.rows))


def fused_products(file: GGUFFile) -> int:
    """How many matrices of 4- and 8-bit codes there are; embeddings count, as the head, where they are tied."""
    untied = "output.weight" in file.tensors
    matrices = (raw for name, raw in file.tensors.items() if name != "token_embd.weight" or not untied)
    return sum(len(raw.shape) > 1 and raw.ggml_type in affine.FORMATS for raw in matrices)


@pytest.mark.parametrize(("shape", "steps"), [(DECODE, 1), (DECODE, 8), (PREFILL, 1)], ids=["one", "eight", "prefill"])
def test_a_step_holds_kernels_for_its_matrices_and_nothing_unknown(
    file: GGUFFile, shape: BatchShape, steps: int
) -> None:
    lowered = lower_step(file, shape, "greedy", steps)
    assert_accepted(lowered)
    layers = file.metadata[f"{file.architecture}.block_count"]
    fused = fused_products(file)
    assert lowered.kernels["mps.quantized_matmul"] == fused > 0
    norms = sum(name.endswith("norm.weight") for name in file.tensors)
    assert lowered.kernels["mps.rms_norm"] == norms
    # Loops: eight steps in a row, a prompt's attention, and the head of 2 GB, in Q6_K, decoded in pieces.
    decode = shape == DECODE
    assert lowered.kernels["mps.sdpa"] == (layers if decode else 0)
    loops = lowered.names["stablehlo.while"]
    head = "output.weight" in file.tensors and file.tensors["output.weight"].ggml_type not in affine.FORMATS
    assert loops == (steps > 1) + (0 if decode else layers) + head
    # The host would wait for the GPU to know which branch to take.
    assert lowered.names["stablehlo.case"] == 0


@pytest.mark.parametrize("name", PARAMS)
def test_sampling_holds_nothing_unknown(name: str) -> None:
    sampling = Sampling(plan=plan_for([PARAMS[name]]), implementation="mps")

    def sample(logits: jax.Array, previous: jax.Array, requests: Any) -> Any:
        return sample_logits(sampling, logits, previous, requests)

    logits = jax.ShapeDtypeStruct((4, 262_144), jnp.float32)
    lowered = lower_for_metal(sample, logits, *operands(PARAMS[name], 4)[:2])
    assert_accepted(lowered)


def test_copies_of_cache_blocks_hold_nothing_unknown(file: GGUFFile) -> None:
    model, _, caches = build(file)
    groups = [layer.group for layer in model.cache_spec()]
    pairs = jax.ShapeDtypeStruct((1 + max(groups), 4, 2), jnp.int32)
    lowered = lower_for_metal(lambda caches, pairs: copy_blocks(caches, pairs, groups), caches, pairs)
    assert_accepted(lowered)


# Experts in a loop with branches, sinks, soft-caps, rotations of pairs, full norms: every family's own operations.
@pytest.mark.parametrize("path", sorted((DATA / "tiny").glob("*.gguf")), ids=lambda path: path.stem)
def test_steps_of_every_family_hold_nothing_unknown(path: Path) -> None:
    tiny = gguf.open(path)
    for shape in (DECODE, PREFILL):
        assert_accepted(lower_step(tiny, shape, "greedy"))
