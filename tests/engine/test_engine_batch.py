"""Host batches, buckets, blocks and cache sizes: plain numbers, no model."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.engine.batch import BatchShape, Buckets, SequenceSlice, pack_batch, unpack_batch
from realm_jax.engine.blocks import BlockPool
from realm_jax.engine.memory import CacheSize, bytes_per_position, cache_size
from realm_jax.models import LayerCache

BLOCK = 16


def slices_of(lengths: list[tuple[int, int]]) -> list[SequenceSlice]:
    """Sequences as (start, tokens); each owns 20 blocks and wants its last row."""
    return [
        SequenceSlice(
            tokens=[100 * i + t for t in range(count)],
            start=start,
            block_table=range(1 + 20 * i, 21 + 20 * i),
            rows=(count - 1,),
        )
        for i, (start, count) in enumerate(lengths)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100)), min_size=1, max_size=5))
def test_a_packed_batch_says_what_the_slices_say(lengths: list[tuple[int, int]]) -> None:
    slices = slices_of(lengths)
    shape = Buckets(max_model_len=320, block_size=BLOCK, groups=2).shape(slices)
    batch = unpack_batch(pack_batch(slices, shape, BLOCK), shape)
    at = 0
    for i, part in enumerate(slices):
        assert (batch.query_start[i], batch.query_start[i + 1]) == (at, at + len(part.tokens))
        assert batch.context_lens[i] == part.start + len(part.tokens)
        assert batch.logits_indices[i] == at + len(part.tokens) - 1
        for offset, token in enumerate(part.tokens):
            position = part.start + offset
            slot = part.block_table[position // BLOCK] * BLOCK + position % BLOCK
            assert (batch.tokens[at + offset], batch.positions[at + offset]) == (token, position)
            np.testing.assert_array_equal(batch.slot_mapping[:, at + offset], slot)
            assert batch.block_tables[1, i, position // BLOCK] == part.block_table[position // BLOCK]
        at += len(part.tokens)
    assert not batch.slot_mapping[:, at:].any()
    np.testing.assert_array_equal(batch.query_start[len(slices) :], at)


def test_unpacking_is_the_same_inside_a_jit() -> None:
    slices = slices_of([(0, 5), (7, 1)])
    shape = Buckets(max_model_len=320, block_size=BLOCK, groups=1).shape(slices)
    buffer = pack_batch(slices, shape, BLOCK)
    inside = jax.jit(unpack_batch, static_argnums=1)(buffer, shape)
    jax.tree.map(np.testing.assert_array_equal, inside, unpack_batch(buffer, shape))


def test_buckets_are_few() -> None:
    buckets = Buckets(max_model_len=4096, block_size=BLOCK, groups=1)
    prefills = {buckets.shape(slices_of([(0, n)])) for n in range(2, 513)}
    assert {shape.tokens for shape in prefills} == {16, 32, 64, 128, 256, 512}
    assert {shape.pages for shape in prefills} == {8, 32}
    decode = buckets.shape(slices_of([(start, 1) for start in (3, 90, 250)]))
    assert decode == BatchShape(tokens=4, sequences=4, pages=32, rows=4, groups=1)
    assert buckets.pages(4096) == 256


def test_blocks_are_handed_out_once_and_come_back() -> None:
    pool = BlockPool(10)
    first, second = pool.allocate(4), pool.allocate(5)
    assert sorted(first + second) == list(range(1, 10))
    with pytest.raises(ValueError, match="1 blocks were asked for, but 0 are free"):
        pool.allocate(1)
    pool.release(first)
    assert pool.free == 4
    with pytest.raises(ValueError, match="num_blocks must be at least 2"):
        BlockPool(1)


def sized(**changes: int | None) -> CacheSize:
    usual: dict[str, int | None] = {
        "trained": 8192,
        "wanted": None,
        "per_position": 46080,
        "max_num_seqs": 4,
        "block_size": 64,
        "budget": None,
        "at_hand": 16 * 2**30,
    }
    return cache_size(**{**usual, **changes})  # type: ignore[arg-type]


def test_the_cache_takes_the_trained_context_and_a_gibibyte() -> None:
    size = sized()
    assert size.max_model_len == 8192
    assert size.num_blocks * 64 * 46080 <= 2**30


def test_the_cache_is_no_larger_than_its_sequences_need() -> None:
    assert sized(wanted=128).num_blocks == 1 + 4 * 2


def test_little_memory_shortens_the_context() -> None:
    size = sized(at_hand=256 * 2**20)
    assert size.max_model_len == (64 * 2**20 // (46080 * 64) - 1) * 64


def test_a_context_that_was_asked_for_fits_or_is_refused() -> None:
    assert sized(wanted=100_000, trained=131_072, at_hand=64 * 2**30).max_model_len == 100_000
    with pytest.raises(ValueError, match="a context of 8192 tokens needs 366 MiB of KV cache, but 100 MiB are to be"):
        sized(wanted=8192, budget=100 * 2**20)
    with pytest.raises(ValueError, match="max_model_len must be at least 1 token, got 0"):
        sized(wanted=0)


def test_bytes_per_position_counts_keys_and_values_of_every_layer() -> None:
    spec = [LayerCache(num_kv_heads=3, head_dim=64)] * 30
    assert bytes_per_position(spec, 16, "float32") == 30 * 2 * 3 * 64 * 4
