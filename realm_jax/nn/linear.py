"""Linear maps and token embeddings over weights in their stored form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.weights import Weights
from realm_jax.ops.projection import LinearMap, project
from realm_jax.ops.split import take_rows_of_parts


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
        return apply_together([self], x)[0]

    @property
    def map(self) -> LinearMap:
        """The map as operations take it."""
        return LinearMap(weight=self.weight.get_value(), bias=None if self.bias is None else self.bias.get_value())


def apply_together(
    linears: Sequence[Linear | Embedding], x: Float[Array, "*tokens inner"], norm: RMSNorm | None = None, **options: Any
) -> tuple[jax.Array, ...]:
    """Each map of `norm(x)`, in one operation; `options` are those of `ops.project`."""
    maps = [linear.map for linear in linears]
    options["implementation"] = linears[0].implementation
    return project(x, maps, norm=None if norm is None else norm.rms, **options)


class Embedding(nnx.Module):
    """Token embeddings `E[vocab, hidden]` in their stored form; tied models use `E` as the head too."""

    def __init__(self, weights: Weights, name: str, features: tuple[int, int]) -> None:
        """Take `name.weight`; `features` is (vocab, hidden)."""
        self.weight = weights.tensor(f"{name}.weight", features)
        self.implementation = weights.implementation

    def __call__(self, tokens: Int[Array, " tokens"], dtype: Any) -> Float[Array, "tokens hidden"]:
        """Rows of `E` in `dtype`, decoding only those."""
        return take_rows_of_parts(self.weight.get_value(), tokens, dtype)

    @property
    def map(self) -> LinearMap:
        """`x E^T`: the tied output projection, as operations take it."""
        return LinearMap(weight=self.weight.get_value())
