"""The tiny dense models that are recorded, one for each architecture, with every optional feature switched on."""

from types import MappingProxyType
from typing import Any

from family import Ablation, Family

__all__ = ["DENSE"]

# Sizes that no two axes share, so that a swapped axis cannot go unnoticed. The epsilon is large enough that a
# wrong one shows; the context is longer than the long prompt, which is longer than the window.
_BASE = MappingProxyType(
    {
        "vocab_size": 256,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 2e-3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
)
_WINDOW = 16


def _config(**changes: Any) -> dict[str, Any]:
    return {**_BASE, **changes}


def _rope(theta: float, rope_type: str = "default", **parameters: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **parameters}


_EPS = Ablation(config={"rms_norm_eps": 1e-6})
_NO_BIAS = Ablation(fill={"bias": 0.0})

_LLAMA = Family(
    name="llama",
    model_type="llama",
    config=_config(rope_parameters=_rope(5000.0), attention_bias=True, mlp_bias=True),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _rope(10000.0)}),
        "attention_bias": Ablation(fill={"self_attn.q_proj.bias": 0.0, "self_attn.k_proj.bias": 0.0,
                                         "self_attn.v_proj.bias": 0.0, "self_attn.o_proj.bias": 0.0}),
        "mlp_bias": Ablation(fill={"mlp.gate_proj.bias": 0.0, "mlp.up_proj.bias": 0.0, "mlp.down_proj.bias": 0.0}),
        "norm_eps": _EPS,
    },
)

_QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    # The head size is derived here: this family has none of its own in its configuration.
    config={k: v for k, v in _config(rope_parameters=_rope(40000.0), tie_word_embeddings=True).items()
            if k != "head_dim"},
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _rope(10000.0)}),
        "attention_bias": _NO_BIAS,
        "norm_eps": _EPS,
    },
)

_QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    config=_config(rope_parameters=_rope(40000.0)),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _rope(10000.0)}),
        "qk_norm": Ablation(fill={"q_norm": 1.0, "k_norm": 1.0}),
        "norm_eps": _EPS,
    },
)


def _gemma3_rope(*, factor: float = 8.0, theta: float = 50000.0, local_theta: float = 500.0) -> dict[str, Any]:
    return {"full_attention": _rope(theta, "linear", factor=factor), "sliding_attention": _rope(local_theta)}


_GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    norm_offset=0.0,
    # Every sixth layer attends to everything: seven layers hold one of those between local ones.
    config=_config(num_hidden_layers=7, tie_word_embeddings=True,
                   sliding_window=_WINDOW, query_pre_attn_scalar=16, final_logit_softcapping=6.0,
                   rope_parameters=_gemma3_rope()),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _gemma3_rope(theta=10000.0)}),
        "rope_base_local": Ablation(config={"rope_parameters": _gemma3_rope(local_theta=50000.0)}),
        "rope_scaling": Ablation(config={"rope_parameters": _gemma3_rope(factor=1.0)}),
        "window": Ablation(config={"sliding_window": 256}),
        "window_off_by_one": Ablation(config={"sliding_window": _WINDOW + 1}),
        "window_pattern": Ablation(config={"layer_types": ["sliding_attention"] * 7}),
        "final_soft_cap": Ablation(config={"final_logit_softcapping": None}),
        "qk_norm": Ablation(fill={"q_norm": 0.0, "k_norm": 0.0}),
        "norm_eps": _EPS,
    },
)

DENSE = (_LLAMA, _QWEN2, _QWEN3, _GEMMA3)
