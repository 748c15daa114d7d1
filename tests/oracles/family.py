"""What a tiny architecture oracle is: a configuration, its random weights, and the features it can lose."""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Ablation", "Family"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One feature switched off: configuration keys to replace, or parameters to overwrite with a constant.

    config: keys of the transformers configuration and their new values (the weights stay).
    fill: part of a parameter's name -> the value that its elements take.
    prompt: the recorded prompt on which the effect is measured.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fill: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prompt: str = "long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One tiny model.

    name: of the files, unique.
    model_type: of the transformers configuration.
    config: every configuration key that differs from the transformers defaults.
    ablations: feature name -> how to switch it off.
    norm_offset: mean of the random norm weights (1, or 0 where the model itself adds 1).
    long: length of the longer prompt, in tokens; above the window, below the context.
    seed: of the weights and prompts.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    ablations: Mapping[str, Ablation]
    norm_offset: float = 1.0
    long: int = 72
    seed: int = 0
