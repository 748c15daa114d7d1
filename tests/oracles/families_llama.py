"""The tiny models of the Llama line: its rotary scalings, Mistral, SmolLM3, Qwen, Granite, Phi-3 and OLMo."""

from typing import Any

from family import ATTENTION_BIASES, MLP_BIASES, NORM_EPS, WINDOW, Ablation, Family, rope, sizes, without_bias

__all__ = ["LLAMA_LINE"]


def _rope_base(theta: float, **others: Any) -> Ablation:
    return Ablation(config={"rope_parameters": rope(theta, **others)})


_LLAMA = Family(
    name="llama",
    model_type="llama",
    config=sizes(rope_parameters=rope(5000.0), attention_bias=True, mlp_bias=True),
    ablations={
        "rope_base": _rope_base(10000.0),
        **without_bias(*ATTENTION_BIASES, *MLP_BIASES),
        "norm_eps": NORM_EPS,
    },
)

# With 64 original positions the first frequency is kept, the next two are blended and the rest are divided.
_LLAMA3_SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA3 = Family(
    name="llama3",
    model_type="llama",
    seed=1,
    config=sizes(rope_parameters=rope(10000.0, **_LLAMA3_SCALING), tie_word_embeddings=True),
    ablations={
        "rope_scaling": _rope_base(10000.0),
        "rope_scaling_factor": _rope_base(10000.0, **{**_LLAMA3_SCALING, "factor": 4.0}),
        "rope_scaling_low": _rope_base(10000.0, **{**_LLAMA3_SCALING, "low_freq_factor": 2.0}),
        "rope_scaling_high": _rope_base(10000.0, **{**_LLAMA3_SCALING, "high_freq_factor": 8.0}),
        "rope_scaling_origin": _rope_base(10000.0, **{**_LLAMA3_SCALING, "original_max_position_embeddings": 128}),
    },
)

_LLAMA_LINEAR = Family(
    name="llama_linear",
    model_type="llama",
    config=sizes(rope_parameters=rope(10000.0, "linear", factor=4.0)),
    ablations={"rope_scaling": _rope_base(10000.0)},
)

# llama.cpp's converter drops Mistral's window, as the later Mistral models do.
_MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    config=sizes(rope_parameters=rope(100000.0), sliding_window=None),
    ablations={"rope_base": _rope_base(10000.0), "norm_eps": NORM_EPS},
)

_SMOLLM3 = Family(
    name="smollm3",
    model_type="smollm3",
    config=sizes(own_head_dim=False, num_hidden_layers=5, rope_parameters=rope(50000.0), tie_word_embeddings=True),
    ablations={
        "rope_base": _rope_base(10000.0),
        "layers_without_rope": Ablation(config={"no_rope_layers": [1, 1, 1, 1, 1]}),
        "norm_eps": NORM_EPS,
    },
)

_QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    config=sizes(own_head_dim=False, rope_parameters=rope(40000.0), tie_word_embeddings=True),
    ablations={
        "rope_base": _rope_base(10000.0),
        **without_bias("q_proj", "k_proj", "v_proj"),
        "norm_eps": NORM_EPS,
    },
)

_QK_NORM = {
    "qk_norm": Ablation(without=("q_norm", "k_norm")),
    "qk_norm_weight": Ablation(fill={"q_norm.weight": 1.0, "k_norm.weight": 1.0}),
}
_QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    config=sizes(rope_parameters=rope(40000.0)),
    ablations={"rope_base": _rope_base(10000.0), **_QK_NORM, "norm_eps": NORM_EPS},
)

# Values unlike the defaults 32 and 1: the file's own have to be read.
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
}
_QWEN3_YARN = Family(
    name="qwen3_yarn",
    model_type="qwen3",
    config=sizes(head_dim=24, rope_parameters=rope(10000.0, **_YARN), tie_word_embeddings=True),
    ablations={
        "rope_scaling": _rope_base(10000.0),
        "yarn_attention_factor": _rope_base(10000.0, **_YARN, attention_factor=1.0),
        "yarn_beta_fast": _rope_base(10000.0, **{**_YARN, "beta_fast": 32.0}),
        "yarn_beta_slow": _rope_base(10000.0, **{**_YARN, "beta_slow": 1.0}),
    },
)

_GRANITE = Family(
    name="granite",
    model_type="granite",
    config=sizes(
        own_head_dim=False,
        rope_parameters=rope(20000.0),
        attention_bias=True,
        mlp_bias=True,
        embedding_multiplier=6.0,
        attention_multiplier=0.15,
        residual_multiplier=0.4,
        logits_scaling=3.0,
    ),
    ablations={
        "rope_base": _rope_base(10000.0),
        "embedding_multiplier": Ablation(config={"embedding_multiplier": 1.0}),
        "attention_multiplier": Ablation(config={"attention_multiplier": 10**-0.5}),
        "residual_multiplier": Ablation(config={"residual_multiplier": 1.0}),
        "logits_scaling": Ablation(config={"logits_scaling": 1.0}),
        **without_bias(*ATTENTION_BIASES, *MLP_BIASES),
    },
)

_PHI3 = Family(
    name="phi3",
    model_type="phi3",
    config=sizes(
        own_head_dim=False,
        rope_parameters=rope(20000.0),
        original_max_position_embeddings=256,
        sliding_window=None,
    ),
    ablations={"rope_base": _rope_base(10000.0), "norm_eps": NORM_EPS},
)

# Three quarters of a head of 16 rotate: six frequencies.
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.05, 1.2, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
    "original_max_position_embeddings": 32,
}
_WHOLE_HEAD = {
    "partial_rotary_factor": 1.0,
    "short_factor": [*_LONGROPE["short_factor"], 2.0, 2.0],
    "long_factor": [*_LONGROPE["long_factor"], 9.0, 9.0],
}
_PHI3_LONGROPE = Family(
    name="phi3_longrope",
    model_type="phi3",
    config=sizes(
        own_head_dim=False,
        hidden_size=64,
        rope_parameters=rope(10000.0, **_LONGROPE),
        original_max_position_embeddings=32,
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    ablations={
        "long_factors": _rope_base(10000.0, **{**_LONGROPE, "long_factor": _LONGROPE["short_factor"]}),
        "short_factors": Ablation(
            config={"rope_parameters": rope(10000.0, **{**_LONGROPE, "short_factor": _LONGROPE["long_factor"]})},
            prompt="short",
        ),
        "attention_factor": _rope_base(10000.0, **_LONGROPE, attention_factor=1.0),
        "partial_rotary": _rope_base(10000.0, **{**_LONGROPE, **_WHOLE_HEAD}),
    },
)

_OLMO2 = Family(
    name="olmo2",
    model_type="olmo2",
    config=sizes(own_head_dim=False, rope_parameters=rope(50000.0)),
    ablations={"rope_base": _rope_base(10000.0), **_QK_NORM, "norm_eps": NORM_EPS},
)


def _olmo3_rope(theta: float = 20000.0, *, scaled: bool = True) -> dict[str, Any]:
    full = rope(theta, "yarn", factor=4.0, original_max_position_embeddings=64) if scaled else rope(theta)
    return {"full_attention": full, "sliding_attention": rope(theta)}


# The architecture of OLMo 3 is recorded as olmo2 with a window; YaRN scales the global layers alone.
_OLMO3 = Family(
    name="olmo3",
    model_type="olmo3",
    config=sizes(own_head_dim=False, num_hidden_layers=4, sliding_window=WINDOW, rope_parameters=_olmo3_rope()),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _olmo3_rope(10000.0)}),
        "rope_scaling": Ablation(config={"rope_parameters": _olmo3_rope(scaled=False)}),
        "window": Ablation(config={"sliding_window": 256}),
        "window_off_by_one": Ablation(config={"sliding_window": WINDOW + 1}),
        "window_pattern": Ablation(config={"layer_types": ["sliding_attention"] * 4}),
        **_QK_NORM,
    },
)

LLAMA_LINE = (
    _LLAMA,
    _LLAMA3,
    _LLAMA_LINEAR,
    _MISTRAL,
    _SMOLLM3,
    _QWEN2,
    _QWEN3,
    _QWEN3_YARN,
    _GRANITE,
    _PHI3,
    _PHI3_LONGROPE,
    _OLMO2,
    _OLMO3,
)
