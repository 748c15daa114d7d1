"""Linear maps and token embeddings over weights in their stored form."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from realm_jax.nn.weights import Weights
from realm_jax.ops.matmul import quantized_matmul
from realm_jax.quant import take_rows


class Linear(nnx.Module):
    """`y = x W^T + b` with `W[out, in]` in its stored form and `b` in float32."""

    def __init__(self, weights: Weights, name: str, features: tuple[int, int], *, bias: bool = False) -> None:
        """Take `name.weight` (and `name.bias`); `features` is (in, out)."""
        inner, outer = features
        self.weight = weights.tensor(f"{name}.weight", (outer, inner))
        self.bias = weights.vector(f"{name}.bias", (outer,)) if bias else None
        self.implementation = weights.implementation

    def __call__(self, x: Float[Array, "*tokens inner"]) -> Float[Array, "*tokens outer"]:
        """Apply the map; the result has `x.dtype`."""
        y = quantized_matmul(x, self.weight.get_value(), implementation=self.implementation)
        return y if self.bias is None else y + _broadcast(self.bias.get_value().astype(y.dtype), y)


def _broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape)


class Embedding(nnx.Module):
    """Token embeddings `E[vocab, hidden]` in their stored form; tied models use `E` as the head too."""

    def __init__(self, weights: Weights, name: str, features: tuple[int, int]) -> None:
        """Take `name.weight`; `features` is (vocab, hidden)."""
        self.weight = weights.tensor(f"{name}.weight", features)
        self.implementation = weights.implementation

    def __call__(self, tokens: Int[Array, " tokens"], dtype: Any) -> Float[Array, "tokens hidden"]:
        """Rows of `E` in `dtype`, decoding only those."""
        return take_rows(self.weight.get_value(), tokens, dtype)

    def attend(self, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens vocab"]:
        """`x E^T`: the tied output projection."""
        return quantized_matmul(x, self.weight.get_value(), implementation=self.implementation)
