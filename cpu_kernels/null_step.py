"""Kernels with the signatures of a decode step and no arithmetic, to measure what a step costs beside its kernels."""

import jax
from jaxtyping import Array, Float, Int32, Shaped

from cpu_kernels.native import target

__all__ = ["null_attention", "null_matmul"]


def null_matmul(x: Float[Array, "*tokens k"], weight: Shaped[Array, "rows ..."]) -> Float[Array, "*tokens rows"]:
    """Stand in for a product with a quantised weight: takes both arrays, reads neither, returns zeros.

    Equals `jnp.zeros((*x.shape[:-1], weight.shape[0]), x.dtype)`.

    Raises:
        RuntimeError: the native library cannot be used.
    """
    result = jax.ShapeDtypeStruct((*x.shape[:-1], weight.shape[0]), x.dtype)
    return jax.ffi.ffi_call(target("realm_null_matmul"), result, vmap_method="sequential")(x, weight)


def null_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    cache: Float[Array, "slots 2 kv_heads head_dim"],
    slot_mapping: Int32[Array, " tokens"],
) -> tuple[Float[Array, "tokens heads head_dim"], Float[Array, "slots 2 kv_heads head_dim"]]:
    """Stand in for attention: appends k and v to the cache in place and returns zeros in place of the output.

    The cache equals `cache.at[slot_mapping].set(jnp.stack([k, v], axis=1), mode="drop")`; a slot outside the cache
    marks padding. The buffer is updated without a copy where the caller donates it and reads only the result.

    Raises:
        ValueError: k, v and cache differ in dtype.
        RuntimeError: the native library cannot be used.
    """
    if not k.dtype == v.dtype == cache.dtype:
        raise ValueError(f"k, v and cache must share a dtype, got {k.dtype}, {v.dtype} and {cache.dtype}")
    results = (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(cache.shape, cache.dtype))
    call = jax.ffi.ffi_call(
        target("realm_null_attention"), results, vmap_method="sequential", input_output_aliases={3: 1}
    )
    out, cache = call(q, k, v, cache, slot_mapping)
    return out, cache
