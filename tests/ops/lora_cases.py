"""Random adapters and tokens, what grouped_lora makes of them in float64, and the bound of its error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_lora.cases import LoraCase

FLOAT32 = 2.0**-24  # half a unit in the last place, relative
ROUNDING = {"float32": FLOAT32, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# What two bfloat16 leave of a float32: the first has its upper 8 bits, the second 8 of those behind, rounded.
HALVES = 2.0**-15
# Parts of a sum over columns, at most.
SPLITS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The arguments of grouped_lora in their order."""

    x: jax.Array
    a: jax.Array
    b: jax.Array
    ids: jax.Array
    scale: jax.Array

    def __iter__(self) -> Iterator[jax.Array]:
        return iter((self.x, self.a, self.b, self.ids, self.scale))


def draw(case: LoraCase, ids: np.ndarray | None = None, seed: int = 0) -> Operands:
    """NaN in tokens without an adapter and in adapters without a token: neither is read.

    Without ids tokens have the active adapters in turn, and the last of several tokens has none.
    """
    rng = np.random.default_rng(seed)
    if ids is None:
        ids = np.arange(case.tokens) % case.active
        ids[1:][-1:] = -1
    x = rng.normal(size=(case.tokens, case.columns))
    a = rng.normal(size=(case.adapters, case.rank, case.columns)) / np.sqrt(case.columns)
    b = rng.normal(size=(case.adapters, case.outputs, case.rank))
    scale = rng.uniform(0.5, 2, case.adapters)
    owned = (ids >= 0) & (ids < case.adapters)
    x[~owned] = np.nan
    for array in (a, b, scale):
        array[np.setdiff1d(np.arange(case.adapters), ids)] = np.nan
    return Operands(
        x=jnp.asarray(x, case.dtype),
        a=jnp.asarray(a, case.adapter_dtype),
        b=jnp.asarray(b, case.adapter_dtype),
        ids=jnp.asarray(ids, jnp.int32),
        scale=jnp.asarray(scale, jnp.float32),
    )


def assert_close(given: Operands, y: jax.Array, *, kernel: bool) -> None:
    """Each row within its bound, and those without an adapter zero.

    A sum of n float32 terms is off by n roundings of their magnitudes. A kernel's products with bfloat16 adapters have
    two terms for each float32 factor, and what these leave of it; others are of float32, rounded once themselves.
    """
    x, a, b, scale = (np.asarray(array, np.float64) for array in (given.x, given.a, given.b, given.scale))
    ids, found = np.asarray(given.ids), np.asarray(y, np.float64)
    split = HALVES if kernel and given.a.dtype == jnp.bfloat16 else 0.0
    split_x = 0.0 if given.x.dtype == jnp.bfloat16 else split
    (rank, columns), last = a.shape[1:], ROUNDING[str(given.x.dtype)]
    assert found.shape == (len(x), b.shape[1])
    for t, e in enumerate(ids):
        if not 0 <= e < len(a):
            assert not found[t].any()
            continue
        hidden = scale[e] * (a[e] @ x[t])
        sizes = scale[e] * (np.abs(a[e]) @ np.abs(x[t]))
        off = ((2 * columns + SPLITS + 2) * FLOAT32 + split_x) * sizes
        exact = b[e] @ hidden
        bound = np.abs(b[e]) @ (off + ((2 * rank + 2) * FLOAT32 + split) * (np.abs(hidden) + off))
        bound += last * (np.abs(exact) + bound)
        np.testing.assert_array_less(np.abs(found[t] - exact), bound + 1e-30)
