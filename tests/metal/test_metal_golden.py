"""Both real models through MLX's primitives, lowered to plain JAX here, against llama.cpp on dequantised weights."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from golden_compare import compare
from models.test_golden import GOLDEN, MARGIN, MODELS

from realm_jax import gguf, models
from realm_jax.engine import scoring
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import Runner
from realm_jax.nn.weights import Weights
from realm_jax.quant import QTensor, from_raw

pytestmark = pytest.mark.usefixtures("primitives")

LENGTH, PROMPT = 80, 64


def runner_of(path: Path) -> Runner:
    """A runner as `LLM` makes it on an Apple GPU, but in float32 and without asking for that GPU."""
    file = gguf.open(path)

    def load(name: str) -> QTensor | None:
        raw = file.tensors.get(name)
        return None if raw is None else from_raw(raw, layout="mps")

    config = models.config_of(file, max_model_len=256)
    weights = Weights(load=load, taken=set(), implementation="mps")
    model = models.FAMILIES[file.architecture].model(weights, config, jnp.float32)
    size = CacheSize(max_model_len=256, num_blocks=(6,))
    return Runner(model, size, block_size=64, kv_cache_dtype="float32")


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_and_tokens_after_it_equal_the_exact_run(name: str, request: pytest.FixtureRequest) -> None:
    runner = runner_of(request.getfixturevalue("smollm2_path" if name.startswith("smollm2") else "gemma3_path"))
    recorded = np.load(GOLDEN / f"{name}.npz")
    ids, top_ids = recorded["long.ids"][:LENGTH].tolist(), recorded["long.top_ids"][:LENGTH]
    (whole,) = scoring.chunks(runner, ids, LENGTH)
    parts = {"tokens": ids[:PROMPT], "rows": range(PROMPT)}
    slices = [dataclasses.replace(whole, **parts)]
    for at in range(PROMPT, LENGTH):
        slices.append(dataclasses.replace(whole, tokens=[ids[at]], start=at, rows=range(1)))
    best, logprobs = (
        np.concatenate(arrays) for arrays in zip(*scoring.score_rows(runner, slices, compare, top_ids), strict=True)
    )
    clear = recorded["long.margin"][:LENGTH] > MARGIN
    np.testing.assert_array_equal(best[clear], top_ids[clear, 0])
    difference = np.abs(logprobs - recorded["long.top_logprobs"][:LENGTH])
    assert difference.mean() <= MODELS[name].mean
    assert difference.max() <= MODELS[name].largest
