"""paged_attention: causal attention of a ragged batch over a pool, by the kernel of a backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.case import Backend
from pallas_kernels.paged_attention.codes import QuantizedKV
from pallas_kernels.paged_attention.config import AttentionOptions, Shape, TritonConfig, config_for, tpu_config
from pallas_kernels.paged_attention.pool import pad_channels, pool_shape
from pallas_kernels.paged_attention.softmax import operand_dtype
from pallas_kernels.paged_attention.tiles import cut

Batch = tuple[Int32[Array, " tokens"], Int32[Array, " starts"], Int32[Array, "sequences pages"]]
"""`(positions, query_start, block_table)`."""


def paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    pool: Float[Array, "blocks kv_heads block_size double_width"] | QuantizedKV,
    batch: Batch,
    options: AttentionOptions,
    *,
    backend: Backend,
    sinks: Float[Array, " heads"] | None = None,
    interpret: bool = False,
    config: TritonConfig | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """`softmax(softcap(scale q k)) v` over the keys and values that the pool has, in `q.dtype`.

    `batch = (positions, query_start, block_table)`: tokens `query_start[b]:query_start[b + 1]` belong to sequence b and
    have consecutive positions. A token at position p sees the positions up to p, inside the window, whose keys and
    values are in the pool, those of the batch too; position s lies in block `block_table[b, s // block_size]`. Tokens
    from `query_start[-1]` on are padding: their output is zero. `sinks[h]` adds a logit without a value to head h.

    One kernel serves prefill, chunks of it, decoding and verification. It reads what the tile of tokens that it works
    on sees and nothing else, whatever the width of the table. Products are those of q's and the pool's type, where
    these differ of float32, which CUDA's tensor cores round to 10 bits of mantissa unless the pool is float32; weights
    are rounded to that type before they meet values. A pool of 8 bits, a `quantized_pool`, is multiplied by its codes,
    in bfloat16 for q of that type, else in float32: a scale of a key meets its score, that of a value its weight. Sums
    and the softmax are float32. `interpret` runs the kernel on the CPU, in jnp. `config`: block sizes of CUDA's
    kernel; None for what `config_for` picks. There are no derivatives.

    Raises:
        ValueError: arrays do not belong together, a pool of float16 on TPU, which cannot load it, or a config that does
            not fit.
    """
    positions, query_start, block_table = batch
    rows, scales = pools = (pool.codes, pool.scales) if isinstance(pool, QuantizedKV) else (pool, None)
    shape = _shape(q, rows, block_table, backend, scaled=scales is not None)
    if not shape.tokens:
        return q
    wide = pad_channels(q, shape.width - q.shape[2])
    # Pallas takes 0.1 s to import, which only programs with kernels should pay.
    if backend == "tpu":
        from pallas_kernels.paged_attention import tpu

        on_tpu = tpu_config(shape)
        tiles = cut(query_start, positions, on_tpu.size)
        on_rows = (query_start, block_table)
        out = tpu.attend(wide, pools, tiles, on_rows, sinks, options, on_tpu, interpret=interpret)
    else:
        from pallas_kernels.paged_attention import triton

        on_cuda = config_for(shape, rows.dtype.name, config)
        tiles = cut(query_start, positions, on_cuda.rows // shape.group)
        out = triton.attend(wide, pools, tiles, block_table, sinks, options, on_cuda, interpret=interpret)
    real = jnp.arange(shape.tokens) < query_start[-1]
    return jnp.where(real[:, None, None], out[..., : q.shape[2]], 0)


def _shape(q: jax.Array, rows: jax.Array, block_table: jax.Array, backend: Backend, *, scaled: bool) -> Shape:
    """The sizes of a call whose arrays belong together."""
    tokens, heads, head_dim = q.shape
    blocks, kv_heads, block_size, double = rows.shape
    if rows.shape != pool_shape(blocks, block_size, kv_heads, head_dim) or heads % kv_heads:
        raise ValueError(f"pool must be of q's head_dim and a divisor of its heads, got {rows.shape} for {q.shape}")
    if backend == "tpu" and rows.dtype == jnp.float16:
        raise ValueError("pool must be bfloat16, float32 or of 8 bits on TPU, got float16")
    return Shape(
        tokens=tokens,
        sequences=block_table.shape[0],
        heads=heads,
        kv_heads=kv_heads,
        width=double // 2,
        block_size=block_size,
        pages=block_table.shape[1],
        scaled=scaled,
        itemsize=operand_dtype(q.dtype, rows.dtype).itemsize,
    )
