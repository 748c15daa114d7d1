"""Stores the experts of a tiny model as MXFP4, the form of the published gpt-oss checkpoints."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

__all__ = ["pack_experts", "quantise_experts"]

_BLOCK = 32
_PROJECTIONS = ("experts.gate_up_proj", "experts.down_proj")
# Exponents of the block scales, biased by 127. The mean square of an FP4 code is 8.6, so that these give the
# weights a standard deviation of about 1.5 / sqrt(fan_in), and more before the clamped activation.
_EXPONENTS = {"experts.gate_up_proj": (123, 126), "experts.down_proj": (122, 125)}

Packed = dict[str, tuple[torch.Tensor, torch.Tensor]]


def quantise_experts(model: PreTrainedModel, seed: int) -> Packed:
    """Give the experts random MXFP4 weights.

    The returned tensors are uint8: blocks [expert, out, in // 32, 16] and scales [expert, out, in // 32]. The model
    holds the same values, decoded by transformers.
    """
    generator = torch.Generator().manual_seed(seed)
    packed: Packed = {}
    for name, parameter in sorted(model.named_parameters()):
        projection = next((end for end in _PROJECTIONS if name.endswith(end)), None)
        if projection is None:
            continue
        experts, fan_in, fan_out = parameter.shape
        grid = (experts, fan_out, fan_in // _BLOCK)
        blocks = torch.randint(0, 256, (*grid, _BLOCK // 2), generator=generator, dtype=torch.uint8)
        scales = torch.randint(*_EXPONENTS[projection], grid, generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            parameter.copy_(convert_moe_packed_tensors(blocks, scales, dtype=parameter.dtype))
        packed[name] = blocks, scales
    return packed


def pack_experts(folder: Path, packed: Packed) -> None:
    """Replace the experts of the checkpoint in `folder` by their packed form."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, (blocks, scales) in packed.items():
        del tensors[name]
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
