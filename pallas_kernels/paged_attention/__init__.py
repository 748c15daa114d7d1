"""Attention over a paged pool of keys and values on GPUs and TPUs: prefill, chunks, decoding and verification."""

from pallas_kernels.paged_attention.attention import paged_attention
from pallas_kernels.paged_attention.codes import QuantizedKV, dequantize, quantize
from pallas_kernels.paged_attention.config import AttentionOptions
from pallas_kernels.paged_attention.pool import pool_shape, quantized_pool, unpack_pool, write_pool

__all__ = [
    "AttentionOptions",
    "QuantizedKV",
    "dequantize",
    "paged_attention",
    "pool_shape",
    "quantize",
    "quantized_pool",
    "unpack_pool",
    "write_pool",
]
