"""Attention over a cache of 8 bits: every implementation attends to the same codes, and derivatives see past them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention import QuantizedKV, unpack_pool, write_pool
from realm_jax.ops import (
    AttentionSpec,
    PagedBatch,
    attend_with_pattern,
    attention_pattern,
    cached_attention,
    empty_kv_cache,
    kv_cache_array,
    read_kv,
    write_kv,
)

BLOCK, HEADS, KV_HEADS, HEAD_DIM = 32, 6, 2, 24
SPEC = AttentionSpec(scale=0.2, window=20, softcap=3.0)
IMPLEMENTATIONS = ("xla", "triton_interpreted", "tpu_interpreted")
# Sums of up to 60 products of float32 in another order, 60 * 2^-24 relative to values of about 1, and a few exps.
ATOL = 2e-5


def drawn(tokens: int, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = [(tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return q, k, v


def batch(begin: int, tokens: int) -> PagedBatch:
    """One sequence's positions from `begin` on."""
    table, positions = jnp.asarray([[3, 1]], jnp.int32), jnp.arange(begin, begin + tokens, dtype=jnp.int32)
    return PagedBatch(
        positions=positions,
        slots=table[0, positions // BLOCK] * BLOCK + positions % BLOCK,
        query_start=jnp.asarray([0, tokens], jnp.int32),
        context_lens=jnp.asarray([begin + tokens], jnp.int32),
        block_table=table,
    )


def begun(implementation: str) -> QuantizedKV:
    """A cache with 30 positions."""
    array = kv_cache_array(4, BLOCK, (KV_HEADS, HEAD_DIM), dtype="q8_0", implementation=implementation)
    (cache,) = empty_kv_cache([array], implementation=implementation)
    _, k, v = drawn(30, 0)
    write = write_kv if implementation == "xla" else lambda pool, k, v, batch: write_pool(pool, k, v, batch.slots)
    return jax.jit(write)(cache, k, v, batch(0, 30))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 9])
def test_all_implementations_attend_to_the_same_codes(tokens: int) -> None:
    new, sinks = batch(30, tokens), jnp.linspace(-1.0, 2.0, HEADS)
    q, k, v = drawn(tokens, 1)
    expected: Any = None
    for implementation in IMPLEMENTATIONS:
        attend = jax.jit(partial(cached_attention, spec=SPEC, implementation=implementation, sinks=sinks))
        out, cache = attend((q, k, v), begun(implementation), new)
        keys, values = read_kv(cache, new, HEAD_DIM, implementation=implementation)
        pattern = attention_pattern(q, keys, new, SPEC, sinks)
        np.testing.assert_allclose(out, attend_with_pattern(pattern, values, new), atol=ATOL, err_msg=implementation)
        plain = cache if implementation == "xla" else unpack_pool(cache, HEAD_DIM)
        expected = plain if expected is None else expected
        np.testing.assert_array_equal(plain.codes, expected.codes)
        np.testing.assert_array_equal(plain.scales, expected.scales)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "triton_interpreted"])
def test_derivatives_are_those_of_unrounded_keys_and_values(implementation: str) -> None:
    """In both modes; keys and values of the call before are what their codes stand for, and constant."""
    new, sinks, cache = batch(30, 7), jnp.linspace(-1.0, 2.0, HEADS), begun(implementation)
    keys, values = read_kv(cache, new, HEAD_DIM, implementation=implementation)
    held = jnp.zeros((4, BLOCK, 2, KV_HEADS, HEAD_DIM))
    held = held.at[new.block_table[0]].set(jnp.stack([keys[0], values[0]], axis=1).reshape(2, BLOCK, 2, KV_HEADS, -1))

    def coded(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
        return cached_attention((q, k, v), cache, new, SPEC, sinks=sinks, implementation=implementation)[0]

    def exact(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
        return cached_attention((q, k, v), held, new, SPEC, sinks=sinks)[0]

    @partial(jax.jit, static_argnums=0)
    def derivatives(attend: Any, given: tuple[jax.Array, ...], seed: jax.Array) -> Any:
        _, pull = jax.vjp(attend, *given)
        return pull(seed), jax.jvp(attend, given, given)[1]

    given = (*drawn(7, 1), sinks)
    gradients, tangent = derivatives(coded, given, given[0])
    expected, expected_tangent = derivatives(exact, given, given[0])
    for ours, theirs in zip(gradients, expected, strict=True):
        assert float(jnp.abs(theirs).max()) > 0.01
        np.testing.assert_allclose(ours, theirs, atol=ATOL)
    np.testing.assert_allclose(tangent, expected_tangent, atol=ATOL)


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_write_to_a_donated_cache_copies_nothing(tokens: int) -> None:
    array = kv_cache_array(512, BLOCK, (KV_HEADS, HEAD_DIM), dtype="q8_0")
    new, k = batch(0, tokens), jnp.ones((tokens, KV_HEADS, HEAD_DIM))
    memory = jax.jit(write_kv, donate_argnums=0).lower(array, k, k, new).compile().memory_analysis()
    assert memory is not None
    size = array.codes.size + 4 * array.scales.size
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 8
