"""Root-mean-square normalisation by the implementation that has a kernel of its own for it, else through XLA."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from cpu_kernels import Rms
from realm_jax.ops import mlx
from realm_jax.ops.backends import is_metal


def normalise(norm: Rms, x: Float[Array, "*batch size"], *, implementation: str | None = None) -> jax.Array:
    """`norm(x)`, computed in float32, in `x.dtype`."""
    return mlx.rms_norm(norm, x) if is_metal(implementation) else norm(x)
