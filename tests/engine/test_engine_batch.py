"""Host batches, buckets, blocks and cache sizes: plain numbers, no model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.engine.batch import BatchShape, Buckets, SequenceSlice, pack_batch, resolve_tokens, unpack_batch
from realm_jax.engine.memory import CacheSize, GroupSize, cache_size, group_sizes
from realm_jax.models import LayerCache

BLOCK = 16


def slices_of(lengths: list[tuple[int, int]]) -> list[SequenceSlice]:
    """Sequences as (start, tokens); each owns 20 blocks and wants its last row."""
    return [
        SequenceSlice(
            tokens=[100 * i + t for t in range(count)],
            start=start,
            block_tables=(range(1 + 20 * i, 21 + 20 * i),),
            rows=(count - 1,),
        )
        for i, (start, count) in enumerate(lengths)
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100)), min_size=1, max_size=5)
    | st.lists(st.tuples(st.integers(0, 300), st.just(1)), min_size=1, max_size=40)
)
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
            slot = part.block_tables[0][position // BLOCK] * BLOCK + position % BLOCK
            assert (batch.tokens[at + offset], batch.positions[at + offset]) == (token, position)
            np.testing.assert_array_equal(batch.slot_mapping[:, at + offset], slot)
            assert batch.block_tables[1, i, position // BLOCK] == part.block_tables[0][position // BLOCK]
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
    assert {(shape.sequences, shape.rows, shape.pages) for shape in prefills} == {(1, 1, 128)}
    decode = buckets.shape(slices_of([(start, 1) for start in (3, 90, 250)]))
    assert decode == BatchShape(tokens=4, sequences=4, pages=128, rows=4, groups=1)
    mixed = buckets.shape(slices_of([(3, 1), (90, 1), (0, 40), (0, 9), (7, 1)]))
    assert mixed == BatchShape(tokens=64, sequences=16, pages=128, rows=16, groups=1)
    batches = {buckets.shape(slices_of([(0, 1)] * n)).sequences for n in range(1, 65)}
    assert batches == {1, 2, 4, 8, 16, 24, 32, 48, 64}
    assert [buckets.pages(context) for context in (1, 2048, 2049, 4096)] == [128, 128, 256, 256]
    whole = Buckets(max_model_len=4096, block_size=16, groups=1, reads_whole_tables=True)
    assert [whole.pages(context) for context in (1, 64, 65, 1000, 3000)] == [4, 4, 8, 64, 256]


def test_scored_rows_lie_behind_the_others() -> None:
    first = dataclasses.replace(slices_of([(0, 9)])[0], scored=range(2, 8))
    slices = [first, slices_of([(4, 3)])[0]]
    shape = Buckets(max_model_len=320, block_size=BLOCK, groups=1).shape(slices)
    assert shape.rows == 16
    batch = unpack_batch(pack_batch(slices, shape, BLOCK), shape)
    assert batch.logits_indices.tolist() == [8, 11, *range(2, 8), *[0] * 8]


def test_groups_have_their_own_tables() -> None:
    part = SequenceSlice(tokens=[5, 6], start=BLOCK - 1, block_tables=([3, 4], [7, 8]), rows=())
    shape = Buckets(max_model_len=320, block_size=BLOCK, groups=2).shape([part])
    batch = unpack_batch(pack_batch([part], shape, BLOCK), shape)
    assert batch.block_tables[:, 0, :3].tolist() == [[3, 4, 0], [7, 8, 0]]
    assert batch.slot_mapping[:, :2].tolist() == [[4 * BLOCK - 1, 4 * BLOCK], [8 * BLOCK - 1, 8 * BLOCK]]


def test_tokens_of_the_launch_before_are_read_on_the_device() -> None:
    slices = [
        dataclasses.replace(part, tokens=[token])
        for part, token in zip(slices_of([(3, 1)] * 3), (-2, 9, -1), strict=True)
    ]
    shape = Buckets(max_model_len=320, block_size=BLOCK, groups=1).shape(slices)
    batch = resolve_tokens(unpack_batch(pack_batch(slices, shape, BLOCK), shape), jnp.array([50, 60, 70]))
    assert batch.tokens.tolist() == [60, 9, 50, 0]


PER_BLOCK = 64 * 46080
WHOLE = GroupSize(block_bytes=PER_BLOCK)


def sized(**changes: Any) -> CacheSize:
    usual: dict[str, Any] = {
        "trained": 8192,
        "wanted": None,
        "groups": (WHOLE,),
        "max_num_seqs": 4,
        "block_size": 64,
        "budget": None,
        "at_hand": 16 * 2**30,
    }
    return cache_size(**{**usual, **changes})


def test_the_cache_takes_the_trained_context_and_a_gibibyte() -> None:
    size = sized()
    assert size.max_model_len == 8192
    assert 0.99 * 2**30 < (size.num_blocks[0]) * PER_BLOCK <= 2**30


def test_the_cache_is_no_larger_than_its_sequences_need() -> None:
    assert sized(wanted=128).num_blocks == (1 + 4 * 2,)


def test_little_memory_shortens_the_context() -> None:
    size = sized(at_hand=256 * 2**20)
    assert size.max_model_len == (64 * 2**20 // PER_BLOCK - 1) * 64


def test_a_context_that_was_asked_for_fits_or_is_refused() -> None:
    assert sized(wanted=100_000, trained=131_072, at_hand=64 * 2**30).max_model_len == 100_000
    with pytest.raises(ValueError, match="a context of 8192 tokens needs 363 MiB of KV cache, but 100 MiB are to be"):
        sized(wanted=8192, budget=100 * 2**20)
    with pytest.raises(ValueError, match="max_model_len must be at least 1 token, got 0"):
        sized(wanted=0)


def test_windows_leave_memory_to_whole_contexts() -> None:
    window = GroupSize(block_bytes=PER_BLOCK, window_blocks=4)
    alone, both = sized(budget=2**28), sized(budget=2**28, groups=(WHOLE, window))
    assert both.num_blocks[1] == 1 + 2 * 4 * 4
    assert both.num_blocks[0] == alone.num_blocks[0] - both.num_blocks[1]
    assert sum(both.num_blocks) * PER_BLOCK <= 2**28


def test_group_sizes_count_keys_and_values_of_every_layer() -> None:
    whole = [LayerCache(num_kv_heads=3, head_dim=64)] * 30
    windowed = [LayerCache(num_kv_heads=3, head_dim=64, window=100, group=1)] * 6
    bytes_of_a_block = 16 * 2 * 3 * 64 * 4
    sizes = group_sizes([*whole, *windowed], 16, "float32", ahead=60)
    assert sizes == (
        GroupSize(block_bytes=30 * bytes_of_a_block),
        GroupSize(block_bytes=6 * bytes_of_a_block, window_blocks=11),
    )
