"""Paged attention against dense attention, over ragged batches, windows, soft-caps, sinks and grouped heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_cases import ATOL, BATCHES, BLOCK, HEAD_DIM, HEADS, KV_HEADS, SPECS, Ragged, dense

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


def test_chunks_that_no_query_sees_add_nothing() -> None:
    """Without branches around them, as Metal computes it."""
    q, k, v, cache, batch = BATCHES["decode"].build(seed=3)
    attend = partial(paged_attention, spec=SPECS["window"], sinks=jnp.linspace(-1.0, 2.0, HEADS))
    without = jax.jit(partial(attend, skip_unseen=False))(q, cache, batch)
    np.testing.assert_allclose(without, jax.jit(attend)(q, cache, batch), atol=ATOL)


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
