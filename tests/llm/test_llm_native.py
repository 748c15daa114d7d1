"""Looking inside a native model: points that split a fused call hold what they hold in XLA, and change nothing."""

from pathlib import Path

import numpy as np
import pytest

import cpu_kernels
from realm_jax import LLM, SamplingParams
from realm_jax.ops import KV_CACHE_DTYPES

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

PROMPT = "The capital of France is"
SPLITTING = ("layers.3.attn.q", "layers.3.attn.k", "layers.3.attn.pattern", "layers.3.attn.out", "layers.3.mlp.out")


@pytest.fixture(scope="module")
def native(smollm2_path: Path) -> LLM:
    return LLM(smollm2_path, max_model_len=128, max_num_seqs=2, implementation="cpu", quiet=True)


def test_points_inside_fused_calls_are_those_of_the_reference(native: LLM, smollm2_path: Path) -> None:
    exact = LLM(smollm2_path, max_model_len=128, max_num_seqs=1, implementation="xla", quiet=True)
    found, expected = native.capture(PROMPT, SPLITTING), exact.capture(PROMPT, SPLITTING)
    for name in SPLITTING:
        # What four layers of 8-bit activations add up to; another point, or one before its norm, is as far as its size.
        distance = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert distance < 0.1, name
    pattern = found["layers.3.attn.pattern"][0]
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-5)


def test_looking_does_not_change_what_is_generated(native: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)  # of wide margins
    plain = native.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].token_ids
    for point in SPLITTING:
        seen = native.generate(PROMPT, params, edits={point: lambda x: x}, use_tqdm=False)[0].outputs[0].token_ids
        assert seen == plain, point


def test_a_block_in_several_operations_has_the_same_bits(native: LLM) -> None:
    ids = native.tokenizer.encode(PROMPT)
    split = native.logits(ids, edits={"layers.*.attn.heads": lambda x: x, "layers.*.mlp.hidden": lambda x: x})
    np.testing.assert_array_equal(split, native.logits(ids))


@pytest.mark.parametrize("kv_cache_dtype", KV_CACHE_DTYPES)
def test_every_kind_of_cache_answers(smollm2_path: Path, kv_cache_dtype: str) -> None:
    llm = LLM(smollm2_path, max_model_len=128, max_num_seqs=1, kv_cache_dtype=kv_cache_dtype, quiet=True)
    output = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)[0].outputs[0]
    assert " Paris" in output.text


def test_an_unknown_cache_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype must be auto or one of float32"):
        LLM(smollm2_path, kv_cache_dtype="int8", quiet=True)
