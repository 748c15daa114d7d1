"""paged_attention of the Pallas kernels, interpreted, against dense attention in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_inputs import Inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.case import Backend
from pallas_kernels.paged_attention import AttentionOptions, paged_attention, pool_shape, unpack_pool, write_pool
from pallas_kernels.paged_attention.cases import SMALL_CASES, AttentionCase
from pallas_kernels.paged_attention.config import Shape, tpu_config, triton_heuristic
from pallas_kernels.paged_attention.tiles import cut, tile_of_token

BACKENDS: tuple[Backend, ...] = ("triton", "tpu")
# All of 8 bits but the one that runs quickest.
SLOW = {case.label for case in SMALL_CASES if case.pool_dtype == "int8"} - {"8 bits, odd channels"}
BY_LABEL = {case.label: case for case in SMALL_CASES}


def attend(case: AttentionCase, inputs: Inputs, backend: Backend) -> jax.Array:
    def call(q: jax.Array, pool: jax.Array, batch: tuple[jax.Array, ...], sinks: jax.Array | None) -> jax.Array:
        return paged_attention(q, pool, batch, case.options, backend=backend, sinks=sinks, interpret=True)

    # What compiles fast runs long enough.
    compiled = jax.jit(call, compiler_options={"xla_llvm_disable_expensive_passes": True})
    return compiled(inputs.q, inputs.pool(), inputs.batch, inputs.sinks)


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, marks=[pytest.mark.slow] if case.label in SLOW else [])
        for case in SMALL_CASES
        for backend in case.backends
    ],
    ids=lambda value: value if isinstance(value, str) else value.label,
)
def test_attention_lies_within_the_derived_bound(case: AttentionCase, backend: Backend) -> None:
    inputs = Inputs(case)
    out = attend(case, inputs, backend)
    assert (out.shape, out.dtype) == (inputs.q.shape, case.dtype)
    exact, bound = inputs.expected()
    np.testing.assert_array_less(np.abs(np.asarray(out, np.float64) - exact), bound + 1e-30)


def test_small_cases_reach_every_way_through_the_kernels() -> None:
    shapes = {
        label: Shape(
            tokens=case.tokens,
            sequences=len(case.sequences),
            heads=case.heads,
            kv_heads=case.kv_heads,
            width=-(-case.head_dim // 16) * 16,
            block_size=case.block_size,
            pages=case.table_width,
        )
        for label, case in BY_LABEL.items()
    }
    assert triton_heuristic(shapes["split decode"]).splits == 4
    assert triton_heuristic(shapes["prefill"]).splits == 1
    assert tpu_config(shapes["split decode"]).pieces > 1
    assert max(BY_LABEL["split decode"].contexts) > 256  # more than a trip of the TPU's kernel


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    padding=st.integers(0, 9),
    size=st.sampled_from([1, 3, 8]),
)
def test_tiles_hold_every_token_once(lengths: list[int], padding: int, size: int) -> None:
    total = sum(lengths)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    positions = np.concatenate([*(np.arange(n) + 7 for n in lengths), np.zeros(padding + 1)]).astype(np.int32)
    tiles = jax.tree.map(np.asarray, jax.jit(cut, static_argnums=2)(starts, positions, size))
    tile, at = map(np.asarray, jax.jit(tile_of_token, static_argnums=(1, 2))(starts, len(positions), size))
    held = []
    for sequence, first, count, start in zip(tiles.sequence, tiles.first, tiles.count, tiles.start, strict=True):
        tokens = range(int(first), int(first + count))
        held += tokens
        assert count <= size
        for place, token in enumerate(tokens):
            assert starts[sequence] <= token < starts[sequence + 1]
            assert positions[token] == start + place
            assert (tile[token], at[token]) == (len(held) and tile[int(first)], place)
    assert held == list(range(total))


@pytest.mark.parametrize(("head_dim", "tokens"), [(12, 3), (64, 1)])
def test_what_is_written_is_read_back(head_dim: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.normal(size=(tokens, 3, head_dim)), jnp.float32) for _ in range(2))
    slots = jnp.asarray([35, 16, 63][:tokens], jnp.int32)
    pool = write_pool(jnp.zeros(pool_shape(4, 16, 3, head_dim), jnp.float32), k, v, slots)
    pages = unpack_pool(pool, head_dim)
    assert pages.shape == (4, 16, 2, 3, head_dim)
    flat = np.array(pages.reshape(64, 2, 3, head_dim))
    np.testing.assert_array_equal(flat[np.asarray(slots), 0], k)
    np.testing.assert_array_equal(flat[np.asarray(slots), 1], v)
    flat[np.asarray(slots)] = 0
    assert not flat.any()


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_a_write_to_a_donated_pool_copies_nothing(tokens: int) -> None:
    pool = jnp.zeros(pool_shape(256, 16, 2, 64), jnp.float32)
    k = jnp.ones((tokens, 2, 64))
    written = jax.jit(write_pool, donate_argnums=0).lower(pool, k, k, jnp.arange(tokens, dtype=jnp.int32)).compile()
    memory = written.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= pool.nbytes
    assert memory.temp_size_in_bytes < pool.nbytes / 8


def test_errors_name_the_rule() -> None:
    inputs = Inputs(dataclasses.replace(BY_LABEL["half floats"], label="pool of half floats"))
    with pytest.raises(ValueError, match="pool must be bfloat16, float32 or of 8 bits on TPU, got float16"):
        attend(inputs.case, inputs, "tpu")
    with pytest.raises(ValueError, match="block_size must be a multiple of 16 for Pallas kernels, got 24"):
        pool_shape(4, 24, 1, 64)
    with pytest.raises(ValueError, match="pool must be of q's head_dim and a divisor of its heads, got"):
        paged_attention(inputs.q[:, :3], inputs.pool(), inputs.batch, inputs.case.options, backend="triton")
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        AttentionOptions(scale=1.0, window=0)
    with pytest.raises(ValueError, match="softcap must be positive, got 0.0"):
        AttentionOptions(scale=1.0, softcap=0.0)
    none = (inputs.batch[0][:0], *inputs.batch[1:])
    nothing = paged_attention(inputs.q[:0], inputs.pool(), none, inputs.case.options, backend="triton")
    assert nothing.shape == (0, *inputs.q.shape[1:])
