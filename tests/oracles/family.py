"""What a tiny architecture oracle is: a configuration, its random weights, and the features it can lose."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = [
    "ATTENTION_BIASES",
    "MLP_BIASES",
    "NORM_EPS",
    "WINDOW",
    "Ablation",
    "Family",
    "rope",
    "sizes",
    "without_bias",
]

WINDOW = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One feature switched off; several of the ways below may be combined.

    config: keys of the transformers configuration and their new values (the weights stay).
    fill: part of a parameter's name -> the value that its elements take.
    without: last part of a module's name: the module becomes the identity.
    prompt: the recorded prompt on which the effect is measured.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fill: Mapping[str, float] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()
    prompt: str = "long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One tiny model.

    name: of the files, unique.
    model_type: of the transformers configuration.
    config: every configuration key that differs from the transformers defaults.
    ablations: feature name -> how to switch it off.
    norm_offset: mean of the random norm weights (1, or 0 where the model itself adds 1).
    gain: part of a parameter's name -> factor on its random values.
    mxfp4: the experts are stored as MXFP4, as the published gpt-oss checkpoints are.
    long: length of the longer prompt, in tokens; above the window, below the context.
    seed: of the weights and prompts.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    ablations: Mapping[str, Ablation]
    norm_offset: float = 1.0
    gain: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mxfp4: bool = False
    long: int = 72
    seed: int = 0


# No two axes have the same size, so that a swapped one cannot go unnoticed, and the size of a head is not
# hidden_size / heads. The epsilon is large enough to show; the context is longer than the long prompt.
_SIZES = MappingProxyType(
    {
        "vocab_size": 128,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "rms_norm_eps": 2e-3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
)
NORM_EPS = Ablation(config={"rms_norm_eps": 1e-6})
ATTENTION_BIASES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_BIASES = ("gate_proj", "up_proj", "down_proj")


def sizes(*, own_head_dim: bool = True, **changes: Any) -> dict[str, Any]:
    """The common sizes with `changes`; some architectures have no head size of their own."""
    keys = _SIZES if own_head_dim else {key: value for key, value in _SIZES.items() if key != "head_dim"}
    return {**keys, **changes}


def rope(theta: float, rope_type: str = "default", **parameters: Any) -> dict[str, Any]:
    """Rotary parameters in the form of the transformers configuration."""
    return {"rope_type": rope_type, "rope_theta": theta, **parameters}


def without_bias(*parameters: str) -> dict[str, Ablation]:
    """One ablation for each parameter: its bias is zero."""
    return {f"{name.replace('.', '_')}_bias": Ablation(fill={f"{name}.bias": 0.0}) for name in parameters}
