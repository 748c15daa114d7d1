"""What configurations read from metadata, how models are put together, and which files are refused."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harness import BLOCK_SIZE, INDEX, MAX_MODEL_LEN, logits_in_chunks, open_tiny, recording, rewrite, whole

from realm_jax import models
from realm_jax.engine.batch import BatchShape, unpack_batch
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import Runner
from realm_jax.engine.scoring import activation_points
from realm_jax.gguf import GGUFError, GGUFFile
from realm_jax.models import CausalLM, ModelConfig, ModelOutput, UnsupportedModelError
from realm_jax.nn import Taps, WeightError

Copy = Callable[..., GGUFFile]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Write a copy of a tiny model with some metadata or tensors changed."""

    def write(name: str, **changes: Any) -> GGUFFile:
        return rewrite(open_tiny(name), tmp_path / "copy.gguf", **changes)

    return write


def configured(copy: Copy, name: str, **metadata: Any) -> Any:
    """The configuration of a tiny model with other metadata; dots are written as two underscores."""
    prefix = INDEX[name]["architecture"]
    changes = {f"{prefix}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return models.config_of(copy(name, metadata=changes))


def test_a_copy_has_the_same_configuration(copy: Copy) -> None:
    assert configured(copy, "olmo3") == models.config_of(open_tiny("olmo3"))


@pytest.mark.parametrize("name", INDEX)
def test_configurations_hash_and_compare_by_value(name: str) -> None:
    first, second = (models.config_of(open_tiny(name)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_an_unknown_architecture_lists_what_is_supported(copy: Copy) -> None:
    file = copy("mistral", architecture="mamba")
    with pytest.raises(UnsupportedModelError, match=r"'mamba' is not supported; supported are gemma2, .*smollm3"):
        models.build(file)


def test_a_missing_tensor_is_named(copy: Copy) -> None:
    file = copy("mistral", tensors={"blk.1.attn_k.weight": None})
    with pytest.raises(WeightError, match=r"no tensor blk\.1\.attn_k\.weight"):
        models.build(file)


def test_a_tensor_of_the_wrong_shape_is_named(copy: Copy) -> None:
    file = copy("mistral", tensors={"blk.1.ffn_up.weight": np.zeros((55, 40))})
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_up\.weight must have shape \(56, 40\).*got \(55, 40\)"):
        models.build(file)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q.bias", "blk.2.attn_q.weight", "output.bias"])
def test_a_tensor_that_nobody_uses_is_refused(copy: Copy, name: str) -> None:
    file = copy("qwen3", tensors={name: np.zeros(48)})
    with pytest.raises(UnsupportedModelError, match=f"1 tensors that its architecture does not use, such as {name}"):
        models.build(file)


def test_biases_of_some_layers_alone_are_refused(copy: Copy) -> None:
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_up\.bias"):
        models.build(copy("llama", tensors={"blk.1.ffn_up.bias": None}))
    with pytest.raises(UnsupportedModelError, match=r"3 tensors .* blk\.1\.attn_k\.bias"):
        models.build(copy("llama", tensors={f"blk.0.attn_{part}.bias": None for part in "qkv"}))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mistral", "attention__sliding_window", 4096),
        ("mistral", "attention__clamp_kqv", 8.0),
        ("mistral", "attention__causal", False),
        ("qwen2", "rope__dimension_sections", [4, 4, 4, 0]),
        ("qwen3", "logit_scale", 2.0),
        ("qwen3", "expert_count", 8),
        ("qwen3_moe", "expert_gating_func", 2),
        ("qwen3_moe", "expert_group_count", 4),
        ("qwen3_yarn", "rope__scaling__yarn_log_multiplier", 0.1),
        ("gemma2", "attention__scale", 0.5),
        ("granite", "rope__scaling__finetuned", False),
    ],
)
def test_a_variant_that_would_go_wrong_is_refused(copy: Copy, name: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key.replace("__", r"\.")):
        configured(copy, name, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__sliding_window", 0),
        ("attention__causal", True),
        ("expert_count", 0),
        ("expert_gating_func", 1),
        ("residual_scale", 1.0),
        ("rope__scaling__finetuned", False),
        ("vocab_size", 999),
    ],
)
def test_keys_that_change_nothing_are_accepted(copy: Copy, key: str, value: Any) -> None:
    assert configured(copy, "mistral", **{key: value}) == models.config_of(open_tiny("mistral"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention__head_count", 0, "head count and embedding length must be positive"),
        ("attention__head_count_kv", 0, "num_kv_heads must be at least 1"),
        ("attention__head_count_kv", 3, "num_heads must be a multiple of 3 kv heads, got 4"),
        ("attention__value_length", 8, "keys and values must have one head size"),
        ("block_count", 0, "num_layers must be at least 1"),
        ("rope__dimension_count", 14, "even number up to 12, got 14"),
        ("rope__scaling__type", "dynamic", "must be none, linear, yarn or longrope, got 'dynamic'"),
    ],
)
def test_impossible_numbers_are_refused(copy: Copy, key: str, value: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        configured(copy, "mistral", **{key: value})


def test_a_missing_number_is_named(copy: Copy) -> None:
    with pytest.raises(GGUFError, match=r"llama\.attention\.layer_norm_rms_epsilon"):
        configured(copy, "mistral", attention__layer_norm_rms_epsilon=None)


@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [
        (None, (True, True, True, False)),
        (2, (True, False, True, False)),
        (1, (False,) * 4),
        (0, (True,) * 4),
        ([False, True, True, False], (False, True, True, False)),
    ],
)
def test_the_pattern_of_windows(copy: Copy, pattern: Any, windowed: tuple[bool, ...]) -> None:
    config = configured(copy, "olmo3", attention__sliding_window_pattern=pattern)
    assert config.windowed == windowed
    layers = [config.layer(i) for i in range(4)]
    assert [layer.attention.window for layer in layers] == [16 if flag else None for flag in windowed]
    assert [layer.group for layer in layers] == [layer.rope for layer in layers] == list(map(int, windowed))


def test_a_pattern_of_another_length_is_refused(copy: Copy) -> None:
    with pytest.raises(UnsupportedModelError, match="one flag for each of 4 layers, got 3"):
        configured(copy, "olmo3", attention__sliding_window_pattern=[True, True, False])


def test_every_layer_of_a_phi3_has_the_window(copy: Copy) -> None:
    assert configured(copy, "phi3").layer().attention.window is None
    assert configured(copy, "phi3", attention__sliding_window=16).layer().attention.window == 16


def test_fused_projections_compute_the_same(copy: Copy) -> None:
    source = open_tiny("qwen2")
    tensors: dict[str, np.ndarray | None] = {}
    for name in (f"blk.{i}.attn_{{}}.{end}" for i in range(2) for end in ("weight", "bias")):
        parts = [source.tensors[name.format(part)] for part in "qkv"]
        tensors[name.format("qkv")] = np.concatenate([raw.data.view("<f4").reshape(raw.shape) for raw in parts])
        tensors |= {name.format(part): None for part in "qkv"}
    ids = recording("qwen2", "short").ids
    fused = logits_in_chunks(models.build(copy("qwen2", tensors=tensors)), ids, MAX_MODEL_LEN)
    # One product over all rows may sum in another order than three.
    np.testing.assert_allclose(fused, logits_in_chunks(whole("qwen2", "short"), ids, MAX_MODEL_LEN), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 0])
def test_no_window_windows_no_layer(copy: Copy, window: int | None) -> None:
    config = configured(copy, "gemma3", attention__sliding_window=window)
    assert (config.window, config.windowed) == (None, (False,) * 7)
    # Gemma 2 has one even where its file does not say.
    default = configured(copy, "gemma2", attention__sliding_window=None)
    assert (default.window, default.windowed) == (4096, (True, False, True))


def test_rope_scalings(copy: Copy) -> None:
    def rope(**metadata: Any) -> Any:
        return configured(copy, "qwen3", **{f"rope__scaling__{key}": value for key, value in metadata.items()}).rope

    plain = rope()
    assert rope(type="none", factor=4.0) == plain
    assert rope(factor=4.0) == rope(type="linear", factor=4.0) == dataclasses.replace(plain, linear_factor=4.0)
    assert configured(copy, "qwen3", rope__scale_linear=4.0).rope.linear_factor == 4.0
    assert rope(type="linear", factor=0.0) == plain
    assert rope(attn_factor=1.5).attention_factor == 1.5
    yarn = rope(type="yarn", factor=4.0)
    assert yarn.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    assert yarn.yarn.original_context == 256
    assert rope(type="yarn", factor=4.0, yarn_attn_factor=1.25).attention_factor == 1.25
    assert rope(type="yarn", factor=1.0).attention_factor == 1.0


def test_the_context_chooses_rope_factors() -> None:
    file = open_tiny("phi3_longrope")
    short, long = (file.tensors[f"rope_factors_{kind}.weight"].data.view(np.float32) for kind in ("short", "long"))
    for max_model_len, factors in ((32, short), (33, long), (None, long)):
        assert models.config_of(file, max_model_len=max_model_len).rope.factors == tuple(factors.tolist())


def test_rope_factors_of_another_head_are_refused(copy: Copy) -> None:
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight must be 6 float32 numbers, got shape \(5,\)"):
        models.config_of(copy("llama3", tensors={"rope_freqs.weight": np.ones(5)}))


def test_the_largest_gemmas_scale_scores_by_their_width(copy: Copy) -> None:
    for name, layers in (("gemma2", 46), ("gemma3", 62)):
        assert configured(copy, name).attention_scale == pytest.approx(12**-0.5)
        assert configured(copy, name, block_count=layers).attention_scale == pytest.approx(10**-0.5)


@pytest.mark.parametrize("name", INDEX)
def test_equal_layers_are_one_program(name: str) -> None:
    forms = {nnx.split(layer)[0] for layer in whole(name, "long").layers}
    windowed = set(getattr(whole(name, "long").config, "windowed", ()))
    rotated = set(getattr(whole(name, "long").config, "rotated", ()))
    assert len(forms) == max(len(windowed), len(rotated), 1)


def described(model: CausalLM) -> list[tuple[str, tuple[int, ...], Any]]:
    """The path, shape and dtype of every leaf."""
    leaves = jax.tree.leaves_with_path(nnx.split(model)[1])
    return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves]


@pytest.mark.parametrize("name", INDEX)
def test_an_abstract_model_has_the_same_leaves(name: str) -> None:
    recorded = recording(name, "long")
    abstract = models.build(recorded.file, config=recorded.config, abstract=True)
    assert described(abstract) == described(whole(name, "long"))


LAYER_POINTS = {
    *("resid_pre", "resid_mid", "resid_post", "attn.q", "attn.k", "attn.v", "attn.heads", "attn.pattern", "attn.out"),
    *("mlp.hidden", "mlp.out"),
}
EXPERT_POINTS = {"mlp.router_logits", "mlp.router_weights"}


@pytest.mark.parametrize("name", INDEX)
def test_narrow_types_keep_their_width(name: str) -> None:
    """The residual stream and the cache stay in bfloat16 in every family; logits are float32."""
    recorded = recording(name, "short")
    model = models.build(recorded.file, config=recorded.config, dtype=jnp.bfloat16)
    shape = BatchShape(tokens=16, sequences=1, pages=8, rows=16, groups=2)
    cache = [jnp.zeros(a.shape, a.dtype) for a in (s.array(4, BLOCK_SIZE, "bfloat16") for s in model.cache_spec())]

    def step(buffer: jax.Array) -> ModelOutput:
        return model(unpack_batch(buffer, shape), cache, Taps(capture=("**",)))

    output = jax.eval_shape(step, jax.ShapeDtypeStruct((shape.size,), np.int32))
    assert output.logits.dtype == jnp.float32
    assert {kv.dtype for kv in output.cache} == {jnp.dtype(jnp.bfloat16)}
    wide = ("attn.pattern", "mlp.router_logits", "mlp.router_weights", "logits")
    for point, value in output.captured.items():
        assert value.dtype == (jnp.float32 if point.endswith(wide) else jnp.bfloat16), point


@pytest.mark.parametrize("name", INDEX)
def test_activation_points_have_the_same_names_everywhere(name: str) -> None:
    model = whole(name, "long")
    size = CacheSize(max_model_len=MAX_MODEL_LEN, num_blocks=(2,))
    runner = Runner(model, size, block_size=16, kv_cache_dtype="float32")
    per_layer = LAYER_POINTS
    if getattr(model.config, "experts", None) is not None:
        per_layer = LAYER_POINTS - {"mlp.hidden"} | EXPERT_POINTS
    expected = {f"layers.{i}.{point}" for i in range(len(model.layers)) for point in per_layer}
    assert set(activation_points(runner)) == expected | {"embed", "final_norm", "logits"}


def test_a_configuration_can_be_changed_and_is_checked_again() -> None:
    config = recording("llama", "long").config
    assert isinstance(config, ModelConfig)
    with pytest.raises(UnsupportedModelError, match="num_layers must be at least 1, got 0"):
        dataclasses.replace(config, num_layers=0)
