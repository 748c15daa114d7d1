"""The kernels that do nothing: the native path under jit, vmap and threads, and a cache that stays in its buffer."""

import concurrent.futures
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

SLOTS, KV_HEADS, HEADS, HEAD_DIM = 32, 2, 4, 8


def random_array(shape: tuple[int, ...], dtype: jnp.dtype, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def step_inputs(tokens: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random q, k and v of some tokens."""
    heads = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (random_array((tokens, n, HEAD_DIM), dtype, seed) for seed, n in enumerate(heads))
    return q, k, v


def random_cache(dtype: jnp.dtype) -> jax.Array:
    return random_array((SLOTS, 2, KV_HEADS, HEAD_DIM), dtype, 9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (2, 3, 64), (0, 64)])
def test_matmul_returns_zeros_of_the_product_s_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> None:
    weight = jnp.ones((48, 2, 18), jnp.uint8)
    out = jax.jit(cpu_kernels.null_matmul)(jnp.ones(shape, dtype), weight)
    np.testing.assert_array_equal(out, jnp.zeros((*shape[:-1], 48), dtype), strict=True)


def test_matmul_under_vmap() -> None:
    mapped = jax.vmap(cpu_kernels.null_matmul, in_axes=(0, None))
    out = mapped(jnp.ones((3, 5, 64)), jnp.ones((48, 36), jnp.uint8))
    np.testing.assert_array_equal(out, jnp.zeros((3, 5, 48)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("slots", [[5], [0, 31, 7], [3, SLOTS, 4], []])
def test_attention_writes_what_a_scatter_would(slots: list[int], dtype: jnp.dtype) -> None:
    q, k, v = step_inputs(len(slots), dtype)
    slot_mapping = jnp.array(slots, jnp.int32)
    expected = np.array(random_cache(dtype))
    for token, slot in enumerate(slots):
        if slot < SLOTS:
            expected[slot] = k[token], v[token]
    out, cache = jax.jit(cpu_kernels.null_attention, donate_argnums=3)(q, k, v, random_cache(dtype), slot_mapping)
    np.testing.assert_array_equal(out, np.zeros_like(q), strict=True)
    np.testing.assert_array_equal(cache, expected, strict=True)


def test_attention_refuses_a_cache_of_another_dtype() -> None:
    q, k, v = step_inputs(1, jnp.float32)
    with pytest.raises(ValueError, match="must share a dtype, got float32, float32 and bfloat16"):
        cpu_kernels.null_attention(q, k, v, random_cache(jnp.bfloat16), jnp.zeros(1, jnp.int32))


@partial(jax.jit, donate_argnums=0)
def layers_step(caches: list[jax.Array], x: jax.Array, slot: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Several layers, each with a cache of its own, that depend on each other as those of a model do."""
    new = []
    for cache in caches:
        out, cache = cpu_kernels.null_attention(x, x[:, :KV_HEADS], x[:, :KV_HEADS] + 1, cache, slot)
        x = x + out
        new.append(cache)
    return new, x


def test_the_cache_keeps_its_buffer_over_ten_steps() -> None:
    caches = [random_cache(jnp.float32) for _ in range(3)]
    pointers = [cache.unsafe_buffer_pointer() for cache in caches]
    x, _, _ = step_inputs(1, jnp.float32)
    for slot in range(10):
        caches, _ = layers_step(caches, x, jnp.array([slot], jnp.int32))
        assert [cache.unsafe_buffer_pointer() for cache in caches] == pointers
    for cache in caches:
        written = jnp.concatenate([x[:, :KV_HEADS], x[:, :KV_HEADS] + 1])
        np.testing.assert_array_equal(cache[:10], jnp.broadcast_to(written, (10, *written.shape)))


def test_nothing_of_the_cache_s_size_is_copied() -> None:
    caches = [random_cache(jnp.float32) for _ in range(3)]
    x, _, _ = step_inputs(1, jnp.float32)
    compiled = layers_step.lower(caches, x, jnp.zeros(1, jnp.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == sum(cache.nbytes for cache in caches)
    assert memory.temp_size_in_bytes < caches[0].nbytes


def test_two_threads_keep_their_caches_apart() -> None:
    def run(thread: int) -> jax.Array:
        caches = [random_cache(jnp.float32)]
        x = jnp.full((1, HEADS, HEAD_DIM), float(thread))
        for slot in range(SLOTS):
            caches, _ = layers_step(caches, x, jnp.array([slot], jnp.int32))
        return caches[0]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for thread, cache in enumerate(pool.map(run, range(2))):
            np.testing.assert_array_equal(cache[:, 0], jnp.full((SLOTS, KV_HEADS, HEAD_DIM), float(thread)))
            np.testing.assert_array_equal(cache[:, 1], jnp.full((SLOTS, KV_HEADS, HEAD_DIM), thread + 1.0))
