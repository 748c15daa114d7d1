"""A float32 as the sum of two bfloat16, for kernels whose matrix units multiply those."""

import jax
import jax.numpy as jnp

__all__ = ["halves"]


def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` rounded to bfloat16, and what that rounds away, rounded: their sum is x to 2^-17.

    XLA takes a conversion to bfloat16 and back for nothing where it may keep excess precision, as it may on GPUs, and
    the second part would be zero: `reduce_precision` is what it keeps.
    """
    high = jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x.astype(jnp.float32) - high).astype(jnp.bfloat16)
