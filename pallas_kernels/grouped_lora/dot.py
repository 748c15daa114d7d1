"""Products inside the kernels: exact ones of bfloat16 factors, or of float32, summed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dot(x: jax.Array, w: jax.Array, axis: int = 1) -> jax.Array:
    """`sum_k x[m, k] w[n, k]`, with `axis` 0 of `w[k, n]`: `float32[m, n]`.

    Factors meet in the type of w. A float32 x enters a product with bfloat16 as two of them, which hold it to 2^-15.
    """
    dims = (((1,), (axis,)), ((), ()))
    if w.dtype == jnp.float32:
        highest = jax.lax.Precision.HIGHEST
        wide = x.astype(jnp.float32)
        return jax.lax.dot_general(wide, w, dims, precision=highest, preferred_element_type=jnp.float32)
    if x.dtype == w.dtype:
        return jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)
    high, low = (jax.lax.dot_general(part, w, dims, preferred_element_type=jnp.float32) for part in halves(x))
    return high + low


def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two bfloat16 whose sum is a float32 to 2^-15: its upper bits, and what they leave, rounded.

    Bits are cut off instead of rounded, since compilers may take a conversion there and back for nothing.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(2**16))
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
