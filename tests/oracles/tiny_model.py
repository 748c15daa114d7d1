"""Builds a tiny transformers model with weights that make every feature count, and runs it in either precision."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from family import Ablation, Family
from mxfp4 import Packed, quantise_experts
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

__all__ = ["TinyModel", "ablated_logits", "build", "double_precision", "logits", "prompts", "router_margin"]

_FLOAT32 = torch.float32
_GAIN = 1.5
_SPREAD = 0.3
_SHORT = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A model and, where the family stores its experts as MXFP4, their packed form by parameter name."""

    model: PreTrainedModel
    packed: Packed


def build(family: Family, changes: Mapping[str, Any] | None = None) -> TinyModel:
    """The model of `family` in the default dtype, with its random weights; `changes` replaces configuration keys.

    Matrices get independent normal weights of standard deviation 1.5 / sqrt(fan_in): default initialisations are
    so small that a model with a feature missing still passes a comparison. Norm weights, biases and attention
    sinks are random too.
    """
    config = AutoConfig.for_model(family.model_type, **{**family.config, **(changes or {})})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype()).eval()
    generator = torch.Generator().manual_seed(family.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_random(family, name, parameter.shape, generator))
    return TinyModel(model=model, packed=quantise_experts(model, family.seed) if family.mxfp4 else {})


def _random(family: Family, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random values for one parameter, drawn in float32 whatever the precision of the model."""
    noise = torch.randn(shape, generator=generator, dtype=_FLOAT32)
    if "bias" in name or "sinks" in name:
        return noise
    if len(shape) == 1:
        return family.norm_offset + _SPREAD * noise
    gain = next((gain for part, gain in family.gain.items() if part in name), 1.0)
    return noise * (gain * _GAIN * shape[-1] ** -0.5)


def prompts(family: Family) -> dict[str, torch.Tensor]:
    """Token ids int64[T] of the two prompts: one inside every window, one beyond."""
    generator = torch.Generator().manual_seed(family.seed + 1)
    vocab = family.config["vocab_size"]
    lengths = {"short": _SHORT, "long": family.long}
    return {name: torch.randint(0, vocab, (length,), generator=generator) for name, length in lengths.items()}


def logits(tiny: TinyModel, ids: torch.Tensor) -> np.ndarray:
    """Logits [T, vocab] of one sequence, in the precision of the model."""
    with torch.no_grad():
        return tiny.model(ids[None], use_cache=False).logits[0].numpy()


def router_margin(tiny: TinyModel, ids: torch.Tensor) -> float | None:
    """The smallest distance between the router logits of the last expert chosen and the first one left out."""
    chosen = getattr(tiny.model.config, "num_experts_per_tok", None)
    if chosen is None:
        return None
    with torch.no_grad():
        layers = tiny.model(ids[None], use_cache=False, output_router_logits=True).router_logits
    ordered = torch.cat(layers).sort(descending=True).values
    return float((ordered[:, chosen - 1] - ordered[:, chosen]).min())


def ablated_logits(family: Family, ablation: Ablation) -> np.ndarray:
    """Logits of the prompt that `ablation` names, with its feature switched off."""
    tiny = build(family, ablation.config)
    missed = {*ablation.fill, *ablation.without}
    with torch.no_grad():
        for name, parameter in tiny.model.named_parameters():
            for part in (part for part in ablation.fill if part in name):
                parameter.fill_(ablation.fill[part])
                missed.discard(part)
    for name, _ in list(tiny.model.named_modules()):
        for end in (end for end in ablation.without if name.endswith(f".{end}")):
            tiny.model.set_submodule(name, torch.nn.Identity())
            missed.discard(end)
    if missed:
        raise ValueError(f"an ablation must change the model, {family.name} has nothing named {sorted(missed)}")
    return logits(tiny, prompts(family)[ablation.prompt])


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Inside, models are built and run in float64 throughout.

    The models cast norms, rotary angles and softmax to `torch.float32` by name, so the name itself has to change.
    """
    single, as_single, default = torch.float32, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = single
        torch.Tensor.float = as_single
        torch.set_default_dtype(default)
