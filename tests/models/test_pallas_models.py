"""A whole model on the interpreted Pallas kernels: the logits of XLA on the same quantised weights."""

from pathlib import Path

import gguf as gguf_package
import jax.numpy as jnp
import numpy as np
import pytest
from harness import BOUND, build_quantised, logits_in_chunks, open_tiny, quantised, recording

from realm_jax import gguf, models
from realm_jax.gguf import GGMLType
from realm_jax.nn.weights import Weights
from realm_jax.ops.backends import choose_implementation
from realm_jax.quant import QTensor, from_raw


# A dense model in Q5_1, and experts in the file's own MXFP4; what both have in common is checked whenever anything
# changes, and mixtures of experts by themselves (tests/pallas_kernels).
@pytest.mark.parametrize(
    ("implementation", "name", "kernels"),
    [
        ("triton_interpreted", "phi3_longrope", 7),
        pytest.param("tpu_interpreted", "gpt_oss_mxfp4", 22, marks=pytest.mark.slow),
        pytest.param("triton_interpreted", "gpt_oss_mxfp4", 22, marks=pytest.mark.slow),
        pytest.param("tpu_interpreted", "phi3_longrope", 7, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_those_of_xla_on_the_same_weights(name: str, kernels: int, implementation: str) -> None:
    file = open_tiny(name)
    assert sum(quantised(raw).ggml_type in (GGMLType.Q5_1, GGMLType.MXFP4) for raw in file.tensors.values()) >= kernels
    for size, count in ((1, 5), (7, 14)):
        ids = recording(name, "short").ids[:count]
        exact = logits_in_chunks(build_quantised(name, file, "xla"), ids, size)
        logits = logits_in_chunks(build_quantised(name, file, implementation), ids, size)
        # One token, as two rows, takes CUDA's decode kernel, which multiplies codes exactly: activations are rounded to
        # 16 bits in each of 9 products in a row. Other kernels round weights to 8 bits, on CUDA scales before that.
        if implementation == "tpu_interpreted":
            bound = 9 * 2.0**-8
        else:
            bound = 9 * (2.0**-16 if size == 1 else 2.0**-7)
        assert np.abs(logits - exact).max() <= bound * np.abs(exact).max()


@pytest.mark.slow  # one product of each kind is in the everyday tests
def test_a_prompt_in_8_bits_stays_near_the_exact_logits() -> None:
    """More than 16 tokens: layers are rounded, and their products as exact as those of other kernels."""
    name = "phi3_longrope"
    file, ids = open_tiny(name), recording(name, "long").ids[:24]
    exact = logits_in_chunks(build_quantised(name, file, "xla"), ids, 24)
    logits, plain = (
        logits_in_chunks(build_quantised(name, file, implementation), ids, 24)
        for implementation in ("triton_int8_interpreted", "triton_interpreted")
    )
    assert (logits != plain).any()
    # Activations are off by at most a 254th of the largest of 32, as weights in bfloat16 are by a 256th of their own.
    assert np.abs(logits - exact).max() <= 9 * 2.0**-7 * np.abs(exact).max()


# Windows that end inside of blocks, soft-caps, sinks, and head_dims that the pool fills up.
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("implementation", ["triton_interpreted", "tpu_interpreted"])
def test_attention_of_the_kernels_gives_the_recorded_logits(name: str, implementation: str) -> None:
    """With matrices in float32, which go through XLA."""
    recorded = recording(name, "long")

    def load(name: str) -> QTensor | None:
        raw = recorded.file.tensors.get(name)
        return None if raw is None else from_raw(raw)

    weights = Weights(load=load, taken=set(), implementation=choose_implementation(implementation))
    model = models.FAMILIES[recorded.file.architecture].model(weights, recorded.config, jnp.float32)
    assert recorded.error(logits_in_chunks(model, recorded.ids, 24)) < BOUND


def test_weights_are_loaded_only_where_their_device_is(smollm2_path: Path) -> None:
    file = gguf.open(smollm2_path)
    for implementation in ("triton", "tpu"):
        with pytest.raises(RuntimeError, match=f"implementation '{implementation}' needs a .PU, but JAX's default"):
            models.build(file, implementation=implementation)
        described = models.build(file, implementation=implementation, abstract=True)
        assert described.layers[0].attn.q_proj.weight.get_value().layout == implementation


def test_types_without_kernels_are_named(tmp_path: Path) -> None:
    """A file of one layer whose down projection is in IQ2_XXS, of zeros."""
    shape = {"hidden": 256, "inner": 256}
    path = tmp_path / "mixed.gguf"
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(256, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    kind = gguf_package.GGMLQuantizationType.Q8_0
    for name in ("token_embd", *(f"blk.0.{name}" for name in names)):
        rows = 32 if name == "token_embd" else 256
        values = gguf_package.quants.quantize(np.zeros((rows, 256), np.float32), kind)
        raw_dtype = kind
        if name.endswith("ffn_down"):
            values, raw_dtype = np.zeros((256, 66), np.uint8), gguf_package.GGMLQuantizationType.IQ2_XXS
        writer.add_tensor(f"{name}.weight", values, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.open(path)
    assert models.fallbacks(file, "triton") == {"blk.0.ffn_down.weight": "IQ2_XXS"}
    assert models.fallbacks(file, "xla") == {}
    with pytest.warns(UserWarning, match="'tpu_interpreted' has no kernels for IQ2_XXS: 1 weights go through XLA"):
        model = models.build(file, implementation="tpu_interpreted")
    mlp = model.layers[0].mlp
    assert [part.weight.get_value().layout for part in (mlp.up_proj, mlp.down_proj)] == ["tpu", "blocks"]
