"""The KV cache of a layer: which array each implementation keeps it in, and how its contents are read back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

import cpu_kernels
from pallas_kernels import paged_attention as kernels
from pallas_kernels.case import Backend
from pallas_kernels.paged_attention import QuantizedKV
from realm_jax.ops.backends import is_metal, is_native, pallas_backend
from realm_jax.ops.paging import KVCache, PagedBatch, read_blocks
from realm_jax.sharding import Split, split_axes

KV_CACHE_DTYPES = cpu_kernels.CACHE_KINDS
"""What a cache can hold: floats, or `q8_0`, int8 codes with scales.

Native kernels have GGML's blocks, a float16 scale for each 32 channels of a position; all others a float32 scale for
all channels of a head at a position, its key and its value apart.
"""

_CPU_POSITIONS = 16  # that keys of the native cache are interleaved by


def kv_cache_array(
    num_blocks: int, block_size: int, heads: tuple[int, int], *, dtype: str, implementation: str | None = None
) -> Any:
    """One layer's cache for `heads = (kv_heads, head_dim)`: `[blocks, block_size, 2, kv_heads, head_dim]` with `xla`.

    Pallas kernels have a pool (`pallas_kernels/paged_attention/pool.py`). Of 8 bits both are a `QuantizedKV`. What is
    returned has a `jax.ShapeDtypeStruct` in place of each array.

    Raises:
        ValueError: an unknown dtype, or one or a block size that the implementation does not have.
    """
    if dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got {dtype!r}")
    if dtype == "q8_0" and is_metal(implementation):
        raise ValueError("kv_cache_dtype must be float32, float16 or bfloat16 with implementation 'mps', got 'q8_0'")
    if not is_native(implementation):
        if (chosen := pallas_backend(implementation)) is not None:
            return _pool(num_blocks, block_size, heads, dtype, chosen[0])
        kept = jnp.dtype("int8" if dtype == "q8_0" else dtype)
        codes = jax.ShapeDtypeStruct((num_blocks, block_size, 2, *heads), kept)
        if dtype != "q8_0":
            return codes
        return QuantizedKV(codes=codes, scales=jax.ShapeDtypeStruct(codes.shape[:-1], jnp.float32))
    if block_size % _CPU_POSITIONS:
        raise ValueError(f"block_size must be a multiple of {_CPU_POSITIONS} on the CPU, got {block_size}")
    shape = cpu_kernels.cache_shape(num_blocks, block_size, *heads, dtype)
    return jax.ShapeDtypeStruct(shape, cpu_kernels.cache_dtype(dtype))


def _pool(num_blocks: int, block_size: int, heads: tuple[int, int], dtype: str, backend: Backend) -> Any:
    if dtype == "q8_0":
        return kernels.quantized_pool(num_blocks, block_size, *heads)
    if backend == "tpu" and dtype == "float16":
        raise ValueError("kv_cache_dtype must be bfloat16, float32 or q8_0 on TPU, got 'float16'")
    return jax.ShapeDtypeStruct(kernels.pool_shape(num_blocks, block_size, *heads), jnp.dtype(dtype))


def kv_cache_bytes(array: Any) -> int:
    """The bytes of a `kv_cache_array`."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(array))


def kv_cache_axes(implementation: str | None = None) -> tuple[str | None, ...]:
    """The logical axes of a cache: only its heads are ever split, since any sequence may lie in any block.

    Scales have the first of them, as many as they have axes.
    """
    if is_native(implementation) or pallas_backend(implementation) is not None:
        return (None, "kv_heads", None, None)
    return (None, None, None, "kv_heads", None)


def kv_cache_split(shape: tuple[int, ...], sizes: Mapping[str, int], *, implementation: str | None = None) -> Split:
    """What the axes of an array of a cache are split over, on a mesh of these sizes."""
    return split_axes(kv_cache_axes(implementation)[: len(shape)], shape, sizes)


def empty_kv_cache(arrays: Sequence[Any], *, implementation: str | None = None) -> list[Any]:
    """Caches of zeros, one for each `kv_cache_array`; those of native kernels take memory only once written to."""
    if not is_native(implementation):
        return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), list(arrays))
    return cpu_kernels.zeros(arrays)


def native_block_size(cache: Any, head_dim: int) -> int:
    """The positions of a block of a native cache, from its shape."""
    one = cpu_kernels.cache_shape(1, _CPU_POSITIONS, 1, head_dim, cpu_kernels.cache_kind(cache.dtype))
    return cache.shape[-1] // one[-1] * _CPU_POSITIONS


def read_kv(
    cache: KVCache, batch: PagedBatch, head_dim: int, *, implementation: str | None = None
) -> tuple[
    Float32[Array, "sequences context kv_heads head_dim"], Float32[Array, "sequences context kv_heads head_dim"]
]:
    """Keys and values of every sequence's block table, in float32."""
    if pallas_backend(implementation) is not None:
        own = jax.tree.map(lambda array: array[batch.block_table.reshape(-1)], cache)
        every = jnp.arange(batch.block_table.size).reshape(batch.block_table.shape)
        pages = read_blocks(kernels.unpack_pool(own, head_dim), every)
    elif not is_native(implementation):
        pages = read_blocks(cache, batch.block_table)
    else:
        assert not isinstance(cache, QuantizedKV)
        shape = (native_block_size(cache, head_dim), cache.shape[1], head_dim)
        stored = cache[batch.block_table.reshape(-1)]
        pages = cpu_kernels.unpack_cache(stored, cpu_kernels.cache_kind(cache.dtype), shape)
        pages = pages.reshape(*batch.block_table.shape, *pages.shape[1:])
    flat = pages.reshape(pages.shape[0], -1, *pages.shape[3:])
    return flat[:, :, 0], flat[:, :, 1]
