"""Products of tokens with the low-rank adapters that each of them has, for GPUs and TPUs."""

from pallas_kernels.grouped_lora.lora import grouped_lora
from pallas_kernels.grouped_lora.shape import Shape, shape_of

__all__ = ["Shape", "grouped_lora", "shape_of"]
