"""Products of activations with quantised weights, decoded next to the matrix units of GPUs and TPUs."""

from pallas_kernels.quantized_matmul.config import Activations
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import pack, stored_shapes, take_rows, unpack
from pallas_kernels.quantized_matmul.product import quantized_matmul, reference_matmul

__all__ = [
    "FORMATS",
    "Activations",
    "pack",
    "quantized_matmul",
    "reference_matmul",
    "stored_shapes",
    "take_rows",
    "unpack",
]
