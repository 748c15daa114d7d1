"""Paged attention against dense attention, over ragged batches, windows, soft-caps, sinks and grouped heads."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.ops import (
    AttentionSpec,
    PagedBatch,
    attend_with_pattern,
    attention_pattern,
    cached_attention,
    paged_attention,
    read_kv,
    write_kv,
)

BLOCK = 16
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8

# Sums of up to 700 float32 products in another order: 700 * 6e-8 relative to values of about 1, and a few exps.
ATOL = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sequences as (tokens already in the cache, new tokens), laid out in shuffled blocks."""

    lengths: tuple[tuple[int, int], ...]
    padding: int = 0

    def build(self, seed: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(seed)
        tokens = sum(new for _, new in self.lengths) + self.padding
        pages = max(-(-(old + new) // BLOCK) for old, new in self.lengths)
        blocks = 1 + rng.permutation(len(self.lengths) * pages)
        tables = blocks.reshape(len(self.lengths), pages)
        cache = rng.normal(size=(len(blocks) + 1, BLOCK, 2, KV_HEADS, HEAD_DIM)).astype(np.float32)
        positions, slots = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
        starts = np.cumsum([0, *(new for _, new in self.lengths)])
        for (old, new), start, table in zip(self.lengths, starts, tables, strict=False):
            at = np.arange(old, old + new)
            positions[start : start + new] = at
            slots[start : start + new] = table[at // BLOCK] * BLOCK + at % BLOCK
        batch = PagedBatch(
            positions=jnp.asarray(positions),
            slots=jnp.asarray(slots),
            query_start=jnp.asarray(starts, jnp.int32),
            context_lens=jnp.asarray([old + new for old, new in self.lengths], jnp.int32),
            block_table=jnp.asarray(tables, jnp.int32),
        )
        q, k, v = (
            jnp.asarray(rng.normal(size=(tokens, n, HEAD_DIM)), jnp.float32) for n in (HEADS, KV_HEADS, KV_HEADS)
        )
        return q, k, v, jnp.asarray(cache), batch


def dense(
    ragged: Ragged, q: np.ndarray, cache: np.ndarray, batch: PagedBatch, spec: AttentionSpec, sinks: np.ndarray | None
) -> np.ndarray:
    """The definition, sequence by sequence and head by head, in float64."""
    out = np.zeros(q.shape)
    flat = np.asarray(cache, np.float64).reshape(-1, 2, KV_HEADS, HEAD_DIM)
    for i, (old, new) in enumerate(ragged.lengths):
        start = int(batch.query_start[i])
        slots = (np.asarray(batch.block_table[i])[:, None] * BLOCK + np.arange(BLOCK)).ravel()[: old + new]
        for token in range(new):
            position = old + token
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            seen = flat[slots[first : position + 1]]
            for head in range(HEADS):
                k, v = seen[:, :, head // (HEADS // KV_HEADS)].swapaxes(0, 1)
                scores = k @ np.asarray(q[start + token, head], np.float64) * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * np.tanh(scores / spec.softcap)
                weights = np.exp(scores)
                total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
                out[start + token, head] = weights @ v / total
    return out


SPECS = {
    "plain": AttentionSpec(scale=0.35),
    "window": AttentionSpec(scale=0.35, window=20),
    "window of one": AttentionSpec(scale=0.35, window=1),
    "softcap": AttentionSpec(scale=0.8, softcap=1.5),
    "window and softcap": AttentionSpec(scale=0.8, window=300, softcap=2.0),
}
BATCHES = {
    "prefill": Ragged(lengths=((0, 70),)),
    "decode": Ragged(lengths=((40, 1), (0, 1), (600, 1), (15, 1))),
    "chunk far into a sequence": Ragged(lengths=((530, 90),)),
    "mixed with padding": Ragged(lengths=((3, 1), (0, 130), (290, 5), (64, 64)), padding=7),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("ragged", BATCHES.values(), ids=BATCHES)
def test_paged_attention_is_dense_attention(ragged: Ragged, spec: AttentionSpec) -> None:
    q, k, v, cache, batch = ragged.build(seed=0)
    sinks = jnp.linspace(-1.0, 2.0, HEADS) if spec.window else None
    out, cache = jax.jit(cached_attention, static_argnums=3)((q, k, v), cache, batch, spec, sinks=sinks)
    real = len(q) - ragged.padding
    expected = dense(
        ragged, np.asarray(q), np.asarray(cache), batch, spec, None if sinks is None else np.asarray(sinks)
    )
    np.testing.assert_allclose(out[:real], expected[:real], atol=ATOL)
    keys, values = read_kv(cache, batch, q.shape[-1])
    pattern = attention_pattern(q, keys, batch, spec, sinks)
    np.testing.assert_allclose(attend_with_pattern(pattern, values, batch)[:real], expected[:real], atol=ATOL)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 40)), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_any_ragged_batch(lengths: list[tuple[int, int]], window: int | None, seed: int) -> None:
    ragged, spec = Ragged(lengths=tuple(lengths)), AttentionSpec(scale=0.35, window=window)
    q, k, v, cache, batch = ragged.build(seed)
    cache = write_kv(cache, k, v, batch)
    expected = dense(ragged, np.asarray(q), np.asarray(cache), batch, spec, None)
    out = jax.jit(paged_attention, static_argnums=3)(q, cache, batch, spec)
    np.testing.assert_allclose(out, expected, atol=ATOL)


def test_the_gradient_flows_through_the_cache_and_matches_the_dense_form() -> None:
    ragged, spec = Ragged(lengths=((0, 40), (5, 3))), AttentionSpec(scale=0.35, window=20, softcap=3.0)
    q, k, v, cache, batch = ragged.build(seed=1)

    def paged(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(cached_attention((q, k, v), cache, batch, spec)[0]))

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        written = write_kv(cache, k, v, batch)
        keys, values = read_kv(written, batch, q.shape[-1])
        return jnp.sum(jnp.sin(attend_with_pattern(attention_pattern(q, keys, batch, spec), values, batch)))

    for ours, theirs in zip(jax.grad(paged, (0, 1, 2))(q, k, v), jax.grad(plain, (0, 1, 2))(q, k, v), strict=True):
        assert float(jnp.abs(theirs).max()) > 0.01
        np.testing.assert_allclose(ours, theirs, atol=ATOL)


def test_derivatives_of_a_kernel_are_those_of_the_reference() -> None:
    """In both modes, and with respect to sinks and to what an earlier call wrote."""
    ragged, spec = Ragged(lengths=((0, 20), (5, 3))), AttentionSpec(scale=0.35, window=9, softcap=3.0)
    q, k, v, cache, batch = ragged.build(seed=2)
    sinks = jnp.linspace(-1.0, 2.0, HEADS)
    # A pool's heads have 16 channels, of which the last 8 are zero; its blocks are those of the reference.
    moved = jnp.pad(jnp.moveaxis(cache, 3, 1), [(0, 0)] * 4 + [(0, 16 - HEAD_DIM)])
    pool = moved.reshape(len(cache), KV_HEADS, BLOCK, 32)

    def run(implementation: str, q: jax.Array, k: jax.Array, cache: jax.Array, sinks: jax.Array) -> jax.Array:
        attend = partial(cached_attention, sinks=sinks, implementation=implementation)
        return attend((q, k, v), cache, batch, spec)[0]

    reference, kernel = partial(run, "xla"), partial(run, "triton_interpreted")
    expected, pull_expected = jax.vjp(reference, q, k, cache, sinks)
    out, pull = jax.vjp(kernel, q, k, pool, sinks)
    np.testing.assert_allclose(out, expected, atol=ATOL)
    theirs, ours = pull_expected(jnp.cos(expected)), pull(jnp.cos(expected))
    theirs_in_pool = jnp.moveaxis(theirs[2], 3, 1)
    ours_in_pool = ours[2].reshape(len(cache), KV_HEADS, BLOCK, 2, 16)[..., :HEAD_DIM]
    np.testing.assert_allclose(ours_in_pool, theirs_in_pool, atol=ATOL)
    for at in (0, 1, 3):
        assert float(jnp.abs(theirs[at]).max()) > 0.01
        np.testing.assert_allclose(ours[at], theirs[at], atol=ATOL)
    _, tangent = jax.jvp(kernel, (q, k, pool, sinks), (q, k, pool, sinks))
    _, expected = jax.jvp(reference, (q, k, cache, sinks), (q, k, cache, sinks))
    np.testing.assert_allclose(tangent, expected, atol=ATOL)


def test_temporaries_of_a_llama_8b_layer_stay_below_256_mb() -> None:
    tokens, pages, block = 512, 128, 64
    batch = PagedBatch(
        positions=jax.ShapeDtypeStruct((tokens,), jnp.int32),
        slots=jax.ShapeDtypeStruct((tokens,), jnp.int32),
        query_start=jax.ShapeDtypeStruct((2,), jnp.int32),
        context_lens=jax.ShapeDtypeStruct((1,), jnp.int32),
        block_table=jax.ShapeDtypeStruct((1, pages), jnp.int32),
    )
    q = jax.ShapeDtypeStruct((tokens, 32, 128), jnp.float32)
    cache = jax.ShapeDtypeStruct((pages + 1, block, 2, 8, 128), jnp.float32)
    attend = jax.jit(paged_attention, static_argnums=3)
    memory = attend.lower(q, cache, batch, AttentionSpec(scale=0.1)).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 256e6
