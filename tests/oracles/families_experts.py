"""The tiny models with a mixture of experts: Mixtral, Qwen3-MoE and gpt-oss."""

import dataclasses
from typing import Any

from family import ATTENTION_BIASES, NORM_EPS, WINDOW, Ablation, Family, rope, sizes, without_bias

__all__ = ["EXPERTS"]

_MIXTRAL = Family(
    name="mixtral",
    model_type="mixtral",
    config=sizes(
        intermediate_size=24,
        num_local_experts=5,
        num_experts_per_tok=2,
        rope_parameters=rope(50000.0),
        sliding_window=None,
    ),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": rope(10000.0)}),
        "experts_per_token": Ablation(config={"num_experts_per_tok": 3}),
        "norm_eps": NORM_EPS,
    },
)

_QWEN3_MOE = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    config=sizes(
        moe_intermediate_size=24,
        num_experts=5,
        num_experts_per_tok=3,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        rope_parameters=rope(50000.0),
    ),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": rope(10000.0)}),
        "qk_norm": Ablation(without=("q_norm", "k_norm")),
        "qk_norm_weight": Ablation(fill={"q_norm.weight": 1.0, "k_norm.weight": 1.0}),
        "expert_normalisation": Ablation(config={"norm_topk_prob": False}),
        "experts_per_token": Ablation(config={"num_experts_per_tok": 2}),
        "norm_eps": NORM_EPS,
    },
)

_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    # llama.cpp always rounds the ends of the ramp; a file has no key to say otherwise.
    "truncate": True,
}
_GPT_OSS = Family(
    name="gpt_oss",
    model_type="gpt_oss",
    # The larger gate and up projections reach the clamp of the activation.
    gain={"experts.gate_up_proj": 3.0},
    config=sizes(
        intermediate_size=24,
        num_local_experts=5,
        num_experts_per_tok=3,
        sliding_window=WINDOW,
        rope_parameters=rope(5000.0, **_YARN),
    ),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": rope(10000.0, **_YARN)}),
        "rope_scaling": Ablation(config={"rope_parameters": rope(5000.0)}),
        "yarn_attention_factor": Ablation(config={"rope_parameters": rope(5000.0, **_YARN, attention_factor=1.0)}),
        "window": Ablation(config={"sliding_window": 256}),
        "window_off_by_one": Ablation(config={"sliding_window": WINDOW + 1}),
        "window_pattern": Ablation(config={"layer_types": ["full_attention", "sliding_attention"]}),
        "sinks": Ablation(fill={"sinks": -1e9}),
        **without_bias(*ATTENTION_BIASES, "router"),
        "experts_gate_up_bias": Ablation(fill={"gate_up_proj_bias": 0.0}),
        "experts_down_bias": Ablation(fill={"down_proj_bias": 0.0}),
        "activation_clamp": Ablation(config={"swiglu_limit": 1e9}),
        "experts_per_token": Ablation(config={"num_experts_per_tok": 2}),
    },
)

# Blocks of 32 weights ask for wider matrices.
_GPT_OSS_MXFP4 = dataclasses.replace(
    _GPT_OSS,
    name="gpt_oss_mxfp4",
    mxfp4=True,
    config={**_GPT_OSS.config, "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4},
    ablations={key: _GPT_OSS.ablations[key] for key in ("activation_clamp", "sinks", "window_off_by_one")},
)

EXPERTS = (_MIXTRAL, _QWEN3_MOE, _GPT_OSS, _GPT_OSS_MXFP4)
