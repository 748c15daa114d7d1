"""Every family on the native kernels against transformers: matrices of plain floats round no activations."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from harness import BOUND, INDEX, MAX_MODEL_LEN, logits_in_chunks, open_tiny, recording, whole

import cpu_kernels
from realm_jax.gguf import GGMLType

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

# Recordings whose matrices are float32; of those in MXFP4 activations are rounded to 8 bits.
FLOATS = [name for name in INDEX if all(raw.ggml_type != GGMLType.MXFP4 for raw in open_tiny(name).tensors.values())]
# One of each form of layer: a plain one, experts, soft-caps with norms after, a fused gate, sinks with a clamped gate.
QUICK = ("llama", "qwen3_moe", "gemma2", "phi3_longrope", "gpt_oss")


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped_at_the_end() -> Iterator[None]:
    """They take memory that later tests do not need."""
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FLOATS]
)
def test_logits_equal_those_of_transformers_and_are_the_same_bits_in_chunks(name: str) -> None:
    recorded, model = recording(name, "long"), whole(name, "long", "cpu")
    with cpu_kernels.profile() as times:
        logits = logits_in_chunks(model, recorded.ids, MAX_MODEL_LEN)
    assert times["paged_attention"].calls == len(model.layers)
    assert recorded.error(logits) <= BOUND
    np.testing.assert_array_equal(logits_in_chunks(model, recorded.ids, 7), logits)


def test_experts_are_one_call_a_layer() -> None:
    recorded, model = recording("qwen3_moe", "short"), whole("qwen3_moe", "short", "cpu")
    with cpu_kernels.profile() as times:
        logits_in_chunks(model, recorded.ids, MAX_MODEL_LEN)
    assert times["mix_experts"].calls == len(model.layers)
