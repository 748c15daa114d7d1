"""grouped_lora: what each token's low-rank adapter adds to a projection; the XLA reference, derivatives, the choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels import grouped_lora as pallas
from pallas_kernels.routing import Routing, block_rows, route_one
from realm_jax.ops.backends import choose_implementation, pallas_backend

__all__ = ["grouped_lora"]

# Rows of the reference's blocks at most: few enough that their float32 copies stay small.
_MOST_ROWS = 512


def grouped_lora(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    adapter_ids: jax.Array,
    scale: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`y[t] = scale[e] (x[t] A[e]^T) B[e]^T` for `e = adapter_ids[t]`, in `x.dtype` (Hu et al., 2021).

    To be added to the projection that the adapters change. Shapes: `x[tokens, columns]` of any floats,
    `a[adapters, rank, columns]` and `b[adapters, outputs, rank]`, both bfloat16 or both float32, `adapter_ids
    int32[tokens]`, `scale float32[adapters]`. Adapters of lower ranks are filled up with zeros. An id outside of
    `[0, adapters)`, such as -1, means no adapter: its row is zero. Ids may be traced, so that none can be refused.
    Adapters that no token has are not read, and what lies in them, NaN included, reaches no row.

    `triton` and `tpu` run kernels (see `pallas_kernels.grouped_lora`); all others go through XLA, in float32, which
    takes the tokens in blocks that have one adapter and slices out that one's matrices for each. Calls with equal ids
    and numbers of adapters share their routing where one program holds them. In calls of the same shapes a row has the
    same bits wherever it stands and whatever other rows and ids there are.

    Reverse derivatives by x, a, b and scale are the reference's with every implementation.

    Raises:
        ValueError: arrays do not belong together, a type is not among those above, or a rank above 128 with Pallas
            kernels.
    """
    chosen = choose_implementation(implementation)
    shape = pallas.shape_of(x, a, b, adapter_ids, scale)
    if not (x.size and a.size and b.size):
        return jnp.zeros((shape.tokens, shape.outputs), x.dtype)
    return _apply(chosen, x, a, b, adapter_ids, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(
    implementation: str,
    x: Float[Array, "tokens columns"],
    a: Float[Array, "adapters rank columns"],
    b: Float[Array, "adapters outputs rank"],
    adapter_ids: Int32[Array, " tokens"],
    scale: Float32[Array, " adapters"],
) -> Float[Array, "tokens outputs"]:
    chosen = pallas_backend(implementation)
    if chosen is None:
        return _reference(x, a, b, adapter_ids, scale)
    backend, interpret = chosen
    return pallas.grouped_lora(x, a, b, adapter_ids, scale, backend=backend, interpret=interpret)


def _apply_forward(implementation: str, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _apply(implementation, *operands), operands


def _apply_backward(implementation: str, operands: tuple[jax.Array, ...], dy: jax.Array) -> tuple[Any, ...]:
    x, a, b, adapter_ids, scale = operands
    routing = _route(adapter_ids, len(a))

    def step(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rows, da, db, dscale = sums
        adapter, rows_x = _block(i, routing, x)
        _, rows_dy = _block(i, routing, dy)
        own_a, own_b = _own(a, adapter), _own(b, adapter)
        hidden, back = _dot("tk,rk->tr", rows_x, own_a), _dot("tn,nr->tr", rows_dy, own_b)
        scaled = back * scale[adapter]
        rows = _put(rows, i, _dot("tr,rk->tk", scaled, own_a))
        da = da.at[adapter].add(_dot("tr,tk->rk", scaled, rows_x))
        db = db.at[adapter].add(_dot("tn,tr->nr", rows_dy, hidden * scale[adapter]))
        return rows, da, db, dscale.at[adapter].add(jnp.sum(hidden * back))

    rows = jnp.zeros((len(routing.source), x.shape[1]), x.dtype)
    start = (rows, *(jnp.zeros(array.shape, jnp.float32) for array in (a, b, scale)))
    rows, da, db, dscale = jax.lax.fori_loop(0, routing.blocks.used, step, start)
    return _taken(rows, routing), da.astype(a.dtype), db.astype(b.dtype), None, dscale


_apply.defvjp(_apply_forward, _apply_backward)


def _reference(x: jax.Array, a: jax.Array, b: jax.Array, adapter_ids: jax.Array, scale: jax.Array) -> jax.Array:
    """Block by block: a copy of one adapter's matrices and of a block's tokens at a time."""
    routing = _route(adapter_ids, len(a))

    def step(i: jax.Array, rows: jax.Array) -> jax.Array:
        adapter, rows_x = _block(i, routing, x)
        hidden = _dot("tk,rk->tr", rows_x, _own(a, adapter)) * scale[adapter]
        return _put(rows, i, _dot("tr,nr->tn", hidden, _own(b, adapter)))

    start = jnp.zeros((len(routing.source), b.shape[1]), x.dtype)
    return _taken(jax.lax.fori_loop(0, routing.blocks.used, step, start), routing)


_dot: Callable[..., jax.Array] = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


def _route(adapter_ids: jax.Array, adapters: int) -> Routing:
    """Blocks from one row on: nothing is gained here by more rows than an adapter's tokens fill."""
    return route_one(adapter_ids, adapters, block=block_rows(len(adapter_ids), adapters, least=1, most=_MOST_ROWS))


def _block(i: jax.Array, routing: Routing, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A block's adapter and its rows of x in float32, zero in rows of no token."""
    size = len(routing.source) // len(routing.blocks.owners)
    tokens = jax.lax.dynamic_slice_in_dim(routing.source, i * size, size)
    rows = jnp.take(x, tokens, axis=0, mode="fill", fill_value=0)
    return routing.blocks.owners[i], rows.astype(jnp.float32)


def _own(matrices: jax.Array, adapter: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(matrices, adapter, keepdims=False).astype(jnp.float32)


def _put(rows: jax.Array, i: jax.Array, own: jax.Array) -> jax.Array:
    """A block's results in their place among all rows."""
    return jax.lax.dynamic_update_slice_in_dim(rows, own.astype(rows.dtype), i * len(own), axis=0)


def _taken(rows: jax.Array, routing: Routing) -> jax.Array:
    """Each token's row, zero for tokens that have none."""
    return jnp.take(rows, routing.place[:, 0], axis=0, mode="fill", fill_value=0)
