"""Keys and values in 8 bits: the pair of arrays that keeps them, how they are rounded, and what they stand for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

_LARGEST_CODE = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedKV:
    """`codes int8[..., channels]`, and `scales float32[...]`: one for the key, or the value, of a head at a position.

    A head stands for `scale * code`. One scale for all its channels can be multiplied with a score, or with the weight
    of a value, in place of each channel, so that kernels multiply exact codes. The order of the axes is that of the
    cache or the pool that keeps it; in place of arrays there may be their shapes or shardings.
    """

    codes: Any
    scales: Any


def quantize(x: Float[Array, "*rows channels"]) -> QuantizedKV:
    """The nearest codes: `scale = max |x| / 127` over the channels of a row, `code = round(x / scale)`.

    `|x - scale * code| <= scale (1/2 + 127 * 2^-23)`: half a step, and the roundings of scale and quotient. Nothing
    flows backward.
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    scales = jnp.max(jnp.abs(x), axis=-1) / _LARGEST_CODE
    # A row of zeros, or of what XLA takes for zero, has the scale 0 and the codes 0.
    codes = jnp.round(x / jnp.where(scales == 0, 1.0, scales)[..., None])
    return QuantizedKV(codes=codes.astype(jnp.int8), scales=scales)


def dequantize(kv: QuantizedKV) -> Float32[Array, "*rows channels"]:
    """What codes stand for, where the axes of the scales are those of the codes without the channels."""
    return kv.codes.astype(jnp.float32) * kv.scales[..., None]
