"""How to switch off each recorded feature of a tiny model: what `effects` in index.json names, done to our model."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from harness import recording

from realm_jax.models import ModelConfig
from realm_jax.nn import RopeConfig
from realm_jax.ops.experts import ClampedSwiGLU

__all__ = ["UNRECORDED", "Ablation", "ablation", "llama3_factors"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A changed configuration, or tensors (without their layer) filled with a constant; seen on one prompt."""

    change: Callable[[Any], Any] = lambda config: config
    fill: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prompt: str = "long"


def fields(**changes: Any) -> Ablation:
    """Other values in fields of the configuration."""
    return Ablation(change=lambda config: dataclasses.replace(config, **changes))


def rope(**changes: Any) -> Ablation:
    """Other values in fields of the rotation."""
    return Ablation(change=lambda config: dataclasses.replace(config, rope=dataclasses.replace(config.rope, **changes)))


def yarn(**changes: Any) -> Ablation:
    """Other values in YaRN's fields."""

    def change(config: ModelConfig) -> ModelConfig:
        changed = dataclasses.replace(config.rope, yarn=dataclasses.replace(config.rope.yarn, **changes))
        return dataclasses.replace(config, rope=changed)

    return Ablation(change=change)


def experts(**changes: Any) -> Ablation:
    """Other values in fields of the experts."""
    return Ablation(
        change=lambda config: dataclasses.replace(config, experts=dataclasses.replace(config.experts, **changes))
    )


def bias(*tensors: str) -> Ablation:
    """Biases of zero."""
    return Ablation(fill={f"{tensor}.bias": 0.0 for tensor in tensors})


def qk_norm_weight() -> Ablation:
    """Norms of queries and keys without their weights."""
    return Ablation(fill={"attn_q_norm.weight": 1.0, "attn_k_norm.weight": 1.0})


def llama3_factors(
    *, factor: float = 8.0, low: float = 1.0, high: float = 4.0, original: int = 64
) -> tuple[float, ...]:
    """What Llama 3's scaling divides each frequency of a head of 12 channels by; the defaults are the recorded ones."""
    divisors = []
    for i in range(6):
        rotations = original * 10000.0 ** (-i / 6) / (2 * math.pi)
        smooth = min(max((rotations - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


def turned(**changes: Any) -> Ablation:
    """Other values in fields of both rotations of a windowed model."""

    def change(config: Any) -> ModelConfig:
        both = {name: dataclasses.replace(getattr(config, name), **changes) for name in ("rope", "local_rope")}
        return dataclasses.replace(config, **both)

    return Ablation(change=change)


def local_rope(**changes: Any) -> Ablation:
    """Other values in fields of the windowed layers' rotation."""

    def change(config: Any) -> ModelConfig:
        return dataclasses.replace(config, local_rope=dataclasses.replace(config.local_rope, **changes))

    return Ablation(change=change)


def other_rope_style(config: ModelConfig) -> ModelConfig:
    """Pair up the channels of a head the other way."""
    style = "half" if config.rope.style == "interleaved" else "interleaved"
    return dataclasses.replace(config, rope=dataclasses.replace(config.rope, style=style))


def longrope(prompt: str) -> RopeConfig:
    """The rotation that goes with one of the prompts of phi3_longrope."""
    return recording("phi3_longrope", prompt).config.rope


def longrope_factors(prompt: str, used_for: str) -> Ablation:
    """The factors that go with one prompt, used for another."""
    return dataclasses.replace(rope(factors=longrope(prompt).factors), prompt=used_for)


_GENERAL: Mapping[str, Callable[[], Ablation]] = {
    "rope_base": lambda: rope(base=10000.0),
    "rope_base_local": lambda: local_rope(base=50000.0),
    "rope_scaling": lambda: rope(linear_factor=1.0, factors=None, yarn=None, attention_factor=1.0),
    "rope_scaling_factor": lambda: rope(factors=llama3_factors(factor=4.0)),
    "rope_scaling_low": lambda: rope(factors=llama3_factors(low=2.0)),
    "rope_scaling_high": lambda: rope(factors=llama3_factors(high=8.0)),
    "rope_scaling_origin": lambda: rope(factors=llama3_factors(original=128)),
    "yarn_attention_factor": lambda: rope(attention_factor=1.0),
    "yarn_beta_fast": lambda: yarn(beta_fast=32.0),
    "yarn_beta_slow": lambda: yarn(beta_slow=1.0),
    "long_factors": lambda: longrope_factors("short", used_for="long"),
    "short_factors": lambda: longrope_factors("long", used_for="short"),
    "attention_factor": lambda: rope(attention_factor=1.0),
    "partial_rotary": lambda: rope(dim=16, factors=(*(longrope("long").factors or ()), 9.0, 9.0)),
    "layers_without_rope": lambda: fields(rotated=(True,) * 5),
    "norm_eps": lambda: fields(norm_eps=1e-6),
    "qk_norm": lambda: fields(qk_norm=False),
    "qk_norm_weight": qk_norm_weight,
    "window": lambda: fields(window=256),
    "window_off_by_one": lambda: fields(window=17),
    "attention_soft_cap": lambda: fields(attention_softcap=None),
    "final_soft_cap": lambda: fields(final_logit_softcap=None),
    "query_scale": lambda: fields(attention_scale=8**-0.5),
    "embedding_multiplier": lambda: fields(embedding_scale=1.0),
    "attention_multiplier": lambda: fields(attention_scale=None),
    "residual_multiplier": lambda: fields(residual_scale=1.0),
    "logits_scaling": lambda: fields(logit_scale=1.0),
    "q_proj_bias": lambda: bias("attn_q"),
    "k_proj_bias": lambda: bias("attn_k"),
    "v_proj_bias": lambda: bias("attn_v"),
    "o_proj_bias": lambda: bias("attn_output"),
    "gate_proj_bias": lambda: bias("ffn_gate"),
    "up_proj_bias": lambda: bias("ffn_up"),
    "down_proj_bias": lambda: bias("ffn_down"),
    "router_bias": lambda: bias("ffn_gate_inp"),
    "experts_gate_up_bias": lambda: bias("ffn_gate_exps", "ffn_up_exps"),
    "experts_down_bias": lambda: bias("ffn_down_exps"),
    "experts_per_token": lambda: experts(experts_per_token=2),
    "expert_normalisation": lambda: experts(normalise=False),
    "activation_clamp": lambda: experts(activation=ClampedSwiGLU(alpha=1.702, limit=1e9)),
    "sinks": lambda: Ablation(fill={"attn_sinks.weight": -1e9}),
}
_SPECIFIC: Mapping[tuple[str, str], Callable[[], Ablation]] = {
    ("mixtral", "experts_per_token"): lambda: experts(experts_per_token=3),
    ("olmo3", "rope_base"): lambda: turned(base=10000.0),
    ("gemma2", "window_pattern"): lambda: fields(windowed=(False, True, False)),
    ("gemma3", "window_pattern"): lambda: fields(windowed=(True,) * 7),
    ("olmo3", "window_pattern"): lambda: fields(windowed=(True,) * 4),
    ("gpt_oss", "window_pattern"): lambda: fields(windowed=(False, True)),
}

# Features that the recordings do not list, since they cannot be switched off in transformers.
UNRECORDED: Mapping[tuple[str, str], Ablation] = {
    **{
        (name, "rope_style"): Ablation(change=other_rope_style)
        for name in ("llama", "smollm3", "granite", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_oss")
    },
    **{(name, "embedding_scale"): fields(embedding_scale=1.0) for name in ("gemma2", "gemma3")},
    ("mixtral", "weights_scale"): experts(weights_scale=2.0),
}


def ablation(name: str, feature: str) -> Ablation:
    """How the model `name` loses `feature`; KeyError for one that nobody has thought of."""
    return (_SPECIFIC.get((name, feature)) or _GENERAL[feature])()
