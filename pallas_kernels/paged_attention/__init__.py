"""Attention over a paged pool of keys and values on GPUs and TPUs: prefill, chunks, decoding and verification."""

from pallas_kernels.paged_attention.attention import paged_attention
from pallas_kernels.paged_attention.config import AttentionOptions
from pallas_kernels.paged_attention.pool import pool_shape, unpack_pool, write_pool

__all__ = ["AttentionOptions", "paged_attention", "pool_shape", "unpack_pool", "write_pool"]
