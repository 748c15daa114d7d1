"""Builds a tiny transformers model with weights that make every feature count, and runs it in either precision."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from family import Ablation, Family
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

__all__ = ["ablated_logits", "build", "double_precision", "logits", "prompts"]

_FLOAT32 = torch.float32
_GAIN = 1.5
_SPREAD = 0.3
_SHORT = 12


def build(family: Family, changes: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The model of `family` in the default dtype, with its random weights; `changes` replaces configuration keys.

    Matrices get independent normal weights of standard deviation 1.5 / sqrt(fan_in): default initialisations are
    so small that a model with a feature missing still passes a comparison. Norm weights, biases and attention
    sinks are random too.
    """
    config = AutoConfig.for_model(family.model_type, **{**family.config, **(changes or {})})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype()).eval()
    generator = torch.Generator().manual_seed(family.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_random(name, parameter.shape, family.norm_offset, generator))
    return model


def _random(name: str, shape: torch.Size, norm_offset: float, generator: torch.Generator) -> torch.Tensor:
    """Random values for one parameter, drawn in float32 whatever the precision of the model."""
    noise = torch.randn(shape, generator=generator, dtype=_FLOAT32)
    if "bias" in name or "sinks" in name:
        return noise
    if len(shape) == 1:
        return norm_offset + _SPREAD * noise
    return noise * (_GAIN * _fan_in(name, shape) ** -0.5)


def _fan_in(name: str, shape: torch.Size) -> int:
    return shape[-1]


def prompts(family: Family) -> dict[str, torch.Tensor]:
    """Token ids int64[T] of the two prompts: one inside every window, one beyond."""
    generator = torch.Generator().manual_seed(family.seed + 1)
    vocab = family.config["vocab_size"]
    return {
        "short": torch.randint(0, vocab, (_SHORT,), generator=generator),
        "long": torch.randint(0, vocab, (family.long,), generator=generator),
    }


def logits(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    """Logits [T, vocab] of one sequence, in the precision of the model."""
    with torch.no_grad():
        return model(ids[None], use_cache=False).logits[0].numpy()


def ablated_logits(family: Family, ablation: Ablation) -> np.ndarray:
    """Logits of the prompt that `ablation` names, with its feature switched off."""
    model = build(family, ablation.config)
    hit = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part in (part for part in ablation.fill if part in name):
                parameter.fill_(ablation.fill[part])
                hit.add(part)
    if hit != set(ablation.fill):
        raise ValueError(f"an ablation must change a parameter, no name contains {sorted(set(ablation.fill) - hit)}")
    return logits(model, prompts(family)[ablation.prompt])


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Inside, models are built and run in float64 throughout.

    The models cast norms, rotary angles and softmax to `torch.float32` by name, so the name itself has to change.
    """
    float32, as_float = torch.float32, torch.Tensor.float
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = float32
        torch.Tensor.float = as_float
        torch.set_default_dtype(default)
