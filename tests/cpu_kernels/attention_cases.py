"""Ragged batches over a paged cache, and dense attention in float64 that says what they should give."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cpu_kernels
from cpu_kernels import AttentionOptions


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shapes of a layer, its options, and each sequence's positions before the batch and tokens in it."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    kind: str = "float32"
    pairs: int = 0
    sinks: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    sequences: tuple[tuple[int, int], ...] = ((0, 5),)
    padding: int = 0

    @property
    def spec(self) -> AttentionOptions:
        given = {"scale": self.head_dim**-0.5, "norm_eps": 1e-6, **dict(self.options)}
        return AttentionOptions(block_size=self.block_size, **given)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.block_size, self.kv_heads, self.head_dim)


class Layer:
    """One case's inputs for every position, its block tables in random order, and a cache full of NaN."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        self.lengths = [before + new for before, new in case.sequences]
        self.pages = max(-(-n // case.block_size) for n in self.lengths) + 1
        self.blocks = len(self.lengths) * self.pages + 2
        order = rng.permutation(self.blocks - 1)[: len(self.lengths) * self.pages] + 1
        self.table = order.reshape(len(self.lengths), self.pages).astype(np.int32)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        self.q = [2 * draw(n, case.heads, case.head_dim) for n in self.lengths]
        self.k = [draw(n, case.kv_heads, case.head_dim) for n in self.lengths]
        self.v = [draw(n, case.kv_heads, case.head_dim) for n in self.lengths]
        self.sinks = draw(case.heads) if case.sinks else None
        sizes = {"head": (case.head_dim,) * 2, "full": (case.heads * case.head_dim, case.kv_heads * case.head_dim)}
        self.norms = tuple(1 + 0.1 * draw(n) for n in sizes[case.spec.norm]) if case.spec.norm else None
        self.frequencies = (100.0 ** -np.linspace(0, 1, case.pairs)).astype(np.float32)

    def empty_cache(self) -> jax.Array:
        case = self.case
        shape = cpu_kernels.cache_shape(self.blocks, case.block_size, case.kv_heads, case.head_dim, case.kind)
        dtype = cpu_kernels.cache_dtype(case.kind)
        all_ones = np.full(np.prod(shape) * dtype.itemsize, 0xFF, np.uint8)
        return jnp.asarray(all_ones.view(dtype).reshape(shape))

    def call(
        self, cache: jax.Array, spans: Sequence[tuple[int, int, int]], padding: int = 0, **how: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Run the batch of `spans`, each (sequence, first position, end), then tokens of padding full of NaN."""
        args, rope = self.batch(spans, padding)
        return run(self.case.spec, *args, cache, rope, self.norms, self.sinks, **how)

    def batch(self, spans: Sequence[tuple[int, int, int]], padding: int = 0) -> tuple[tuple[Any, Any], Any]:
        """The arrays of a batch: (q, k, v), (positions, query_start, context_lens, block_table), and the rope table."""

        def gather(arrays: list[np.ndarray]) -> jax.Array:
            tail = np.full((padding, *arrays[0].shape[1:]), np.nan, np.float32)
            return jnp.asarray(np.concatenate([*(arrays[s][a:b] for s, a, b in spans), tail]))

        positions = np.concatenate([*(np.arange(a, b) for _, a, b in spans), np.full(padding, -7)]).astype(np.int32)
        starts = np.cumsum([0, *(b - a for _, a, b in spans)]).astype(np.int32)
        context = np.array([b for _, _, b in spans], np.int32)
        table = self.table[[s for s, _, _ in spans]]
        rope = None
        if self.case.spec.rope_style:
            rope = cpu_kernels.rope_table(jnp.asarray(positions), jnp.asarray(self.frequencies))
        return ((gather(self.q), gather(self.k), gather(self.v)), (positions, starts, context, table)), rope

    def after_history(self, cache: jax.Array | None = None) -> jax.Array:
        cache = self.empty_cache() if cache is None else cache
        spans = [(s, 0, before) for s, (before, _) in enumerate(self.case.sequences) if before]
        return self.call(cache, spans)[1] if spans else cache

    def new_spans(self) -> list[tuple[int, int, int]]:
        return [(s, before, before + new) for s, (before, new) in enumerate(self.case.sequences)]

    def exact_q(self, sequence: int) -> np.ndarray:
        return self._prepared(self.q[sequence], 0)

    def exact_k(self, sequence: int) -> np.ndarray:
        return self._prepared(self.k[sequence], 1)

    def _prepared(self, x: np.ndarray, which: int) -> np.ndarray:
        """`rope(norm(x))` in float64."""
        spec, x = self.case.spec, x.astype(np.float64)
        if spec.norm:
            axes = (-1,) if spec.norm == "head" else (-2, -1)
            weight = self.norms[which].astype(np.float64).reshape(-1, self.case.head_dim)
            x = x / np.sqrt(np.mean(x * x, axis=axes, keepdims=True) + spec.norm_eps) * weight
        if spec.rope_style:
            angle = np.arange(len(x))[:, None] * self.frequencies.astype(np.float64)
            turn = np.exp(1j * angle)[:, None]
            n = self.case.pairs
            first = slice(0, n) if spec.rope_style == "half" else slice(0, 2 * n, 2)
            second = slice(n, 2 * n) if spec.rope_style == "half" else slice(1, 2 * n, 2)
            turned = (x[..., first] + 1j * x[..., second]) * turn
            x[..., first], x[..., second] = turned.real, turned.imag
        return x

    def cached(self, cache: jax.Array, sequence: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys and values of a sequence, as the cache holds them."""
        pages = np.asarray(cpu_kernels.unpack_cache(cache, self.case.kind, self.case.shape), np.float64)
        flat = pages[self.table[sequence]].reshape(-1, *pages.shape[2:])[: self.lengths[sequence]]
        return flat[:, 0], flat[:, 1]

    def expected(self, cache: jax.Array, sequence: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Dense attention of positions `first` on with what the cache holds, and the bound of a float32 result's error.

        A score is a sum of D products of q and k, and q was rounded at most 12 times and by the n/16 sums of a norm of
        n channels: E <= (D + n/16 + 16) u max|q| max|k| D scale, u = 2^-24, and 2^-22 of a cap. Weights are then off
        by a factor of at most e^(2 E) and 4 u of their exponentials, and a weighted value by another u for each of its
        S + S/256 additions.
        """
        spec, u = self.case.spec, 2.0**-24
        q = self.exact_q(sequence)[first:]
        k, v = (np.repeat(x, self.case.heads // self.case.kv_heads, axis=1) for x in self.cached(cache, sequence))
        scores = np.einsum("thd,shd->ths", q, k) * spec.scale
        channels = self.case.heads * self.case.head_dim if spec.norm == "full" else self.case.head_dim
        roundings = self.case.head_dim + channels / 16 + 16
        error = roundings * u * self.case.head_dim * spec.scale * 1.5 * np.abs(q).max() * np.abs(k).max()
        if spec.softcap:
            scores = spec.softcap * np.tanh(scores / spec.softcap)
            error += 4 * u * spec.softcap
        here, there = np.arange(first, self.lengths[sequence])[:, None], np.arange(self.lengths[sequence])[None]
        seen = (there <= here) & (there > here - (spec.window or len(v)))
        weights = np.where(seen[:, None], np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
        total = weights.sum(axis=-1, keepdims=True)
        if self.sinks is not None:
            total = total + np.exp(self.sinks.astype(np.float64)[None, :, None] - scores.max(axis=-1, keepdims=True))
        weights = weights / total
        bound = np.expm1(2 * error) + (2 * len(v) + 16) * u
        return np.einsum("ths,shd->thd", weights, v), bound * np.einsum("ths,shd->thd", weights, np.abs(v))


@partial(jax.jit, static_argnums=0, static_argnames=("instruction_set", "threads"), donate_argnums=3)
def run(
    options: AttentionOptions, qkv: Any, batch: Any, cache: jax.Array, rope: Any, norms: Any, sinks: Any, **how: Any
) -> tuple[jax.Array, jax.Array]:
    """paged_attention, compiled once for each shape; the cache is donated."""
    return cpu_kernels.paged_attention(qkv, cache, batch, options, rope=rope, norms=norms, sinks=sinks, **how)
