"""One file per operation: the XLA reference, and the choice of a backend."""

from realm_jax.ops.attention import (
    AttentionSpec,
    attend_with_pattern,
    attention_pattern,
    cached_attention,
    paged_attention,
)
from realm_jax.ops.backends import IMPLEMENTATIONS, choose_implementation, fastest_implementation
from realm_jax.ops.kv_cache import KV_CACHE_DTYPES, empty_kv_cache, kv_cache_array, kv_cache_bytes, read_kv
from realm_jax.ops.lora import grouped_lora
from realm_jax.ops.matmul import quantized_matmul
from realm_jax.ops.paging import KVCache, PagedBatch, write_kv

__all__ = [
    "IMPLEMENTATIONS",
    "KV_CACHE_DTYPES",
    "AttentionSpec",
    "KVCache",
    "PagedBatch",
    "attend_with_pattern",
    "attention_pattern",
    "cached_attention",
    "choose_implementation",
    "empty_kv_cache",
    "fastest_implementation",
    "grouped_lora",
    "kv_cache_array",
    "kv_cache_bytes",
    "paged_attention",
    "quantized_matmul",
    "read_kv",
    "write_kv",
]
