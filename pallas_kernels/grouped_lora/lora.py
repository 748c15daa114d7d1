"""grouped_lora: what each token's low-rank adapter adds to a projection, by the kernels of a backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend
from pallas_kernels.grouped_lora.config import rows_of, tpu_config, triton_config
from pallas_kernels.grouped_lora.shape import Shape, shape_of
from pallas_kernels.routing import Routing, gather, route_one

MOST_RANK = 128


def grouped_lora(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    adapter_ids: jax.Array,
    scale: jax.Array,
    *,
    backend: Backend,
    interpret: bool = False,
) -> jax.Array:
    """`y[t] = scale[e] (x[t] A[e]^T) B[e]^T` for `e = adapter_ids[t]` (Hu et al., 2021), in `x.dtype`.

    `x[tokens, columns]`, `a[adapters, rank, columns]`, `b[adapters, outputs, rank]`, `adapter_ids int32[tokens]`,
    `scale float32[adapters]`. An id outside of `[0, adapters)`, such as -1, means no adapter: the row is zero, and
    nothing is read for it. Adapters that no token has are not read either.

    Rows of a block of tokens that have one adapter read it once, 16 to 64 of them. Sums are float32. Adapters of
    bfloat16 meet an x of that type exactly; a float32 x, and what lies between A and B, enter as two bfloat16 that hold
    it to 2^-15. Adapters of float32 are multiplied in float32. In calls of the same shapes a row has the same bits
    wherever it stands and whatever other rows and ids there are; shapes choose tiles, and so the order of sums.
    `interpret` runs the kernels on the CPU, in jnp. There are no derivatives.

    Raises:
        ValueError: arrays do not belong together, or the rank is above 128.
    """
    shape = shape_of(x, a, b, adapter_ids, scale)
    if shape.rank > MOST_RANK:
        raise ValueError(f"rank must be at most {MOST_RANK} for Pallas kernels, got {shape.rank}; use 'xla'")
    if not (x.size and a.size and b.size):
        return jnp.zeros((shape.tokens, shape.outputs), x.dtype)
    routing = route_one(adapter_ids, shape.adapters, block=rows_of(shape))
    return multiply_routed(x, a, b, scale, routing, shape, backend=backend, interpret=interpret)


def multiply_routed(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    routing: Routing,
    shape: Shape,
    *,
    backend: Backend,
    interpret: bool = False,
) -> jax.Array:
    """The same for tokens that have their rows already, in blocks of `rows_of(shape)`."""
    # TPUs cannot load float16, and bfloat16 factors would lose its bits.
    wide = x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)
    # Pallas takes 0.1 s to import, which only programs with kernels should pay.
    if backend == "tpu":
        from pallas_kernels.grouped_lora import tpu

        rows = gather(wide, routing)
        y = tpu.multiply(rows, a, b, scale, routing.blocks, tpu_config(shape), interpret=interpret)
        own = jnp.take(y, routing.place[:, 0], axis=0, mode="fill", fill_value=0)
        return own.astype(x.dtype)
    from pallas_kernels.grouped_lora import triton

    y = triton.multiply(wide, a, b, scale, routing, triton_config(shape), interpret=interpret)
    owned = routing.place[:, 0] < len(routing.source)
    return jnp.where(owned[:, None], y, 0).astype(x.dtype)
