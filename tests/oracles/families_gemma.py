"""The tiny Gemma models: windows, soft-caps, norms around every block, and a query scale of their own."""

from typing import Any

from family import NORM_EPS, WINDOW, Ablation, Family, rope, sizes

__all__ = ["GEMMA"]

# The scaled embeddings are larger than elsewhere: so must an epsilon be to show.
_EPS = 2e-2
_GEMMA2_CAPS: dict[str, Any] = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}
_GEMMA2_ABLATIONS = {
    "attention_soft_cap": Ablation(config={"attn_logit_softcapping": None}),
    "final_soft_cap": Ablation(config={"final_logit_softcapping": None}),
    "window": Ablation(config={"sliding_window": 256}),
    "window_off_by_one": Ablation(config={"sliding_window": WINDOW + 1}),
}

_GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    norm_offset=0.0,
    config=sizes(
        rms_norm_eps=_EPS,
        num_hidden_layers=3,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        tie_word_embeddings=True,
        **_GEMMA2_CAPS,
    ),
    ablations={
        **_GEMMA2_ABLATIONS,
        "window_pattern": Ablation(config={"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        "norm_eps": NORM_EPS,
    },
)

# The one Gemma 2 whose query scale is not the size of a head; a file tells it by its 46 layers alone.
_GEMMA2_27B = Family(
    name="gemma2_27b",
    model_type="gemma2",
    norm_offset=0.0,
    config=sizes(
        num_hidden_layers=46,
        hidden_size=32,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        tie_word_embeddings=True,
        **_GEMMA2_CAPS,
    ),
    ablations={**_GEMMA2_ABLATIONS, "query_scale": Ablation(config={"query_pre_attn_scalar": 8})},
)


def _gemma3_rope(*, factor: float = 8.0, theta: float = 50000.0, local_theta: float = 500.0) -> dict[str, Any]:
    return {"full_attention": rope(theta, "linear", factor=factor), "sliding_attention": rope(local_theta)}


_GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    norm_offset=0.0,
    # Every sixth layer attends to everything: seven layers hold one of those between local ones.
    config=sizes(
        rms_norm_eps=_EPS,
        num_hidden_layers=7,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        final_logit_softcapping=6.0,
        rope_parameters=_gemma3_rope(),
        tie_word_embeddings=True,
    ),
    ablations={
        "rope_base": Ablation(config={"rope_parameters": _gemma3_rope(theta=10000.0)}),
        "rope_base_local": Ablation(config={"rope_parameters": _gemma3_rope(local_theta=50000.0)}),
        "rope_scaling": Ablation(config={"rope_parameters": _gemma3_rope(factor=1.0)}),
        "window": Ablation(config={"sliding_window": 256}),
        "window_off_by_one": Ablation(config={"sliding_window": WINDOW + 1}),
        "window_pattern": Ablation(config={"layer_types": ["sliding_attention"] * 7}),
        "final_soft_cap": Ablation(config={"final_logit_softcapping": None}),
        "qk_norm": Ablation(without=("q_norm", "k_norm")),
        "qk_norm_weight": Ablation(fill={"q_norm.weight": 0.0, "k_norm.weight": 0.0}),
        "norm_eps": NORM_EPS,
    },
)

GEMMA = (_GEMMA2, _GEMMA2_27B, _GEMMA3)
