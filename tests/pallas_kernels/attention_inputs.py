"""Inputs of a case of paged_attention, and dense attention in float64 that says what they should give."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention import QuantizedKV, pool_shape, quantize
from pallas_kernels.paged_attention.cases import AttentionCase

# Half a unit in the last place, relative.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class Inputs:
    """Random values at every position, in blocks of random order; NaN wherever no token looks, and in padding."""

    def __init__(self, case: AttentionCase, seed: int = 0) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        count, width = len(case.sequences), case.table_width
        self.table = (1 + rng.permutation(count * width)).reshape(count, width).astype(np.int32)
        draw = lambda n, heads: rng.normal(size=(n, heads, case.head_dim)).astype(np.float32)  # noqa: E731
        self.k, self.v = ([draw(n, case.kv_heads) for n in case.contexts] for _ in range(2))
        q = np.concatenate(
            [
                draw(case.tokens - case.padding, case.heads),
                np.full((case.padding, 1, 1), np.nan) + draw(case.padding, case.heads),
            ]
        )
        self.q = jnp.asarray(2 * q, case.dtype)
        self.sinks = jnp.asarray(rng.normal(size=case.heads), jnp.float32) if case.sinks else None
        self.starts = np.cumsum([0, *(new for _, new in case.sequences)]).astype(np.int32)
        at = [np.arange(before, before + new) for before, new in case.sequences]
        self.positions = np.concatenate([*at, np.zeros(case.padding)]).astype(np.int32)

    @property
    def batch(self) -> tuple[Any, ...]:
        return tuple(jnp.asarray(array) for array in (self.positions, self.starts, self.table))

    def pool(self) -> Any:
        """What tokens see, and NaN around it; of a pool of 8 bits the scales are NaN there, and codes the largest."""
        case = self.case
        shape = pool_shape(self.table.size + 1, case.block_size, case.kv_heads, case.head_dim)
        pool = np.full(shape, np.nan, np.float32)
        scales = np.full((shape[0], case.kv_heads, 2, case.block_size), np.nan, np.float32)
        for sequence, (before, _) in enumerate(case.sequences):
            seen = np.arange(max(0, before + 1 - (case.window or before + 1)), case.contexts[sequence])
            block, offset = self.table[sequence, seen // case.block_size], seen % case.block_size
            values = np.zeros((len(seen), case.kv_heads, 2, shape[-1] // 2), np.float32)
            for side, drawn in enumerate((self.k, self.v)):
                kv = quantize(jnp.asarray(drawn[sequence][seen]))
                values[:, :, side, : case.head_dim] = kv.codes if case.pool_dtype == "int8" else drawn[sequence][seen]
                scales[block, :, side, offset] = kv.scales
            pool[block, :, offset] = values.reshape(len(seen), case.kv_heads, shape[-1])
        if case.pool_dtype == "int8":
            return QuantizedKV(codes=jnp.asarray(np.nan_to_num(pool, nan=127), jnp.int8), scales=jnp.asarray(scales))
        return jnp.asarray(pool, case.pool_dtype)

    def _stored(self, x: np.ndarray) -> np.ndarray:
        if self.case.pool_dtype == "int8":
            kv = quantize(jnp.asarray(x))
            rounded = np.asarray(kv.codes, np.float64) * np.asarray(kv.scales, np.float64)[..., None]
        else:
            rounded = np.asarray(jnp.asarray(x, self.case.pool_dtype), np.float64)
        return np.repeat(rounded, self.case.heads // self.case.kv_heads, axis=1)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact attention with what the pool holds, and the bound of a kernel's error; zero for padding.

        With u = 2^-24, a score is a sum of D products and 9 more roundings, so off by E <= (D + 9) u sum |q k| scale
        and 4 u of a cap. The weights that meet values are off by a factor of at most e^(2 E), 17 u for exponentials,
        rescaling and the scale of 8-bit codes, one rounding to the type that is multiplied, and u for each of S
        additions of them, and of weighted values. The result is rounded once.
        """
        case, u = self.case, ROUNDING["float32"]
        out, bound = (np.zeros(self.q.shape) for _ in range(2))
        as_stored = case.dtype == case.pool_dtype or (case.pool_dtype == "int8" and case.dtype == "bfloat16")
        narrow = ROUNDING[case.dtype] if as_stored else u
        for sequence, (before, new) in enumerate(case.sequences):
            own = slice(self.starts[sequence], self.starts[sequence + 1])
            q, k, v = (
                np.asarray(self.q[own], np.float64),
                self._stored(self.k[sequence]),
                self._stored(self.v[sequence]),
            )
            scores = np.einsum("thd,shd->ths", q, k) * case.options.scale
            sizes = np.einsum("thd,shd->ths", np.abs(q), np.abs(k)) * case.options.scale
            error = (case.head_dim + 9) * u * sizes
            if case.softcap:
                scores = case.softcap * np.tanh(scores / case.softcap)
                error += 4 * u * case.softcap
            here, there = np.arange(before, before + new)[:, None, None], np.arange(before + new)
            seen = (there <= here) & (there > here - (case.window or before + new))
            weights = np.where(seen, np.exp(scores), 0)
            total = weights.sum(axis=-1, keepdims=True)
            if self.sinks is not None:
                total += np.exp(np.asarray(self.sinks, np.float64))[None, :, None]
            weights = weights / total
            worst = np.max(np.where(seen, error, 0), axis=-1, initial=0)[..., None]
            off = np.expm1(2 * worst) + narrow + (2 * (before + new) + 17) * u
            out[own] = np.einsum("ths,shd->thd", weights, v)
            spread = off * np.einsum("ths,shd->thd", weights, np.abs(v))
            bound[own] = spread + ROUNDING[case.dtype] * (np.abs(out[own]) + spread)
        return out, bound
