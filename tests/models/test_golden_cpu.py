"""Both real models in the native kernels: no further from exact than llama.cpp, and the same bits in any cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_compare import compare

import cpu_kernels
from realm_jax import LLM, SamplingParams
from realm_jax.engine import scoring

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODELS = {"smollm2_path": "smollm2-135m-q4_1", "gemma3_path": "gemma3-270m-q4_k_m"}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> tuple[LLM, str]:
    path = request.getfixturevalue(request.param)
    return LLM(path, max_model_len=1280, max_num_seqs=8, implementation="cpu", quiet=True), MODELS[request.param]


def test_the_native_run_is_as_exact_as_llama_cpp_and_cut_anywhere(loaded: tuple[LLM, str]) -> None:
    llm, name = loaded
    recorded = np.load(GOLDEN / f"{name}.npz")
    described = json.loads((GOLDEN / f"{name}.json").read_text())
    differences, agreements = [], []
    for sequence in described["sequences"]:
        ids = recorded[f"{sequence['name']}.ids"].tolist()
        top_ids = recorded[f"{sequence['name']}.top_ids"]
        runs = []
        for chunk in (500, 64, 7):
            parts = scoring.score_rows(llm.runner, scoring.chunks(llm.runner, ids, chunk), compare, top_ids)
            runs.append([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
        best, logprobs = runs[0]
        for other in runs[1:]:
            np.testing.assert_array_equal(other[0], best)
            # The logits have the same bits (below); XLA's sum of the softmax depends on the number of rows.
            np.testing.assert_allclose(other[1], logprobs, atol=2e-5)
        agreements.append(best == top_ids[:, 0])
        differences.append(np.abs(logprobs - recorded[f"{sequence['name']}.top_logprobs"]))
    peer = described["llama_cpp_quantised_run"]
    assert sum(map(len, agreements)) == peer["positions"]
    assert np.concatenate(differences).mean() <= peer["mean_abs_dlogprob_top32"]
    assert np.concatenate(agreements).mean() >= peer["top1_agreement"]


def test_logits_have_the_same_bits_however_a_prompt_is_cut(loaded: tuple[LLM, str]) -> None:
    llm, name = loaded
    ids = np.load(GOLDEN / f"{name}.npz")["long.ids"][:90].tolist()
    whole = scoring.sequence_logits(llm.runner, ids, chunk=90)
    for chunk in (64, 7, 1):
        np.testing.assert_array_equal(scoring.sequence_logits(llm.runner, ids, chunk=chunk), whole)


def test_a_request_does_not_depend_on_its_company(loaded: tuple[LLM, str]) -> None:
    llm, name = loaded
    recorded = np.load(GOLDEN / f"{name}.npz")
    prompts = [{"prompt_token_ids": recorded[f"greedy{i}.ids"][: 3 + 2 * i].tolist()} for i in range(5)]
    params = SamplingParams(temperature=0.8, seed=7, max_tokens=12, ignore_eos=True)
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, together, strict=True):
        alone = llm.generate(prompt, params, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
