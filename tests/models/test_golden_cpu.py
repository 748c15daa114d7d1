"""SmolLM2 in the native kernels: as close to the exact run as llama.cpp's own quantised run is."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels
from realm_jax import LLM
from realm_jax.engine import scoring
from realm_jax.models import ForwardBatch, ModelOutput

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

# Both runs round activations to 8 bits in groups of 32, and so are draws from one distribution. Over 1,543 positions
# the mean's standard error is 2.5%, that of the agreement 0.4 points: one of each.
MEAN_TOLERANCE, AGREEMENT_TOLERANCE = 1.025, 0.004


def compare(output: ModelOutput, batch: ForwardBatch, top_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best token and the log-probabilities of the recorded ones."""
    logprobs = jax.nn.log_softmax(output.logits, axis=-1)
    return jnp.argmax(logprobs, axis=-1), jnp.take_along_axis(logprobs, top_ids, axis=-1)


def test_smollm2_is_as_exact_as_llama_cpp(smollm2_path: Path) -> None:
    recorded = np.load(GOLDEN / "smollm2-135m-q4_1.npz")
    described = json.loads((GOLDEN / "smollm2-135m-q4_1.json").read_text())
    llm = LLM(smollm2_path, max_model_len=1280, max_num_seqs=1, dtype="float32", implementation="cpu", quiet=True)
    differences, agreements = [], []
    for sequence in described["sequences"]:
        ids = recorded[f"{sequence['name']}.ids"].tolist()
        top_ids = recorded[f"{sequence['name']}.top_ids"]
        parts = scoring.score_rows(llm.runner, scoring.chunks(llm.runner, ids, 500), compare, top_ids)
        best, logprobs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        agreements.append(best == top_ids[:, 0])
        differences.append(np.abs(logprobs - recorded[f"{sequence['name']}.top_logprobs"]))
    peer = described["llama_cpp_quantised_run"]
    assert sum(map(len, agreements)) == peer["positions"]
    assert np.concatenate(differences).mean() <= MEAN_TOLERANCE * peer["mean_abs_dlogprob_top32"]
    assert np.concatenate(agreements).mean() >= peer["top1_agreement"] - AGREEMENT_TOLERANCE
