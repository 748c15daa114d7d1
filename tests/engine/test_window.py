"""The window of weights: what stays in memory, what is read ahead, and that no more is held than was allowed."""

import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm_jax import gguf
from realm_jax.engine import window as window_module
from realm_jax.engine.window import Window, choose_pinned, least_memory
from realm_jax.quant import MappedTensor, from_raw

TINY = Path(__file__).parents[1] / "data" / "tiny"
SIZES = st.lists(st.integers(1, 100), min_size=2, max_size=40)


def neighbours(sizes: list[int], pinned: frozenset[int]) -> int:
    """The most that two streamed parts, one after the other in a ring, take together."""
    streamed = [size for i, size in enumerate(sizes) if i not in pinned]
    return max(streamed[i] + streamed[i - 1] for i in range(len(streamed)))


@given(sizes=SIZES, more=st.integers(0, 4000))
def test_what_stays_leaves_room_for_two_of_the_others(sizes: list[int], more: int) -> None:
    memory = neighbours(sizes, frozenset()) + more
    pinned = choose_pinned(sizes, memory)
    if sum(sizes) <= memory:
        assert len(pinned) == len(sizes)
        return
    assert len(sizes) - len(pinned) >= 2
    assert sum(sizes[i] for i in pinned) + neighbours(sizes, pinned) <= memory


@given(count=st.integers(8, 200), share=st.floats(0.2, 0.8))
def test_equal_parts_that_stay_are_spread_evenly_and_fill_the_memory(count: int, share: float) -> None:
    memory = max(2, int(count * share))
    pinned = choose_pinned([1] * count, memory)
    assert len(pinned) == memory - 2
    for first in range(count // 2):
        # Any half of the parts has half of them; golden-ratio sequences are off by at most two or three.
        assert abs(sum(first <= i < first + count // 2 for i in pinned) - len(pinned) / 2) <= 3.5


@pytest.fixture(scope="module")
def tensors() -> list[MappedTensor]:
    """Matrices of one size."""
    raws = [raw for raw in gguf.open(TINY / "llama.gguf").tensors.values() if len(raw.shape) == 2]
    size = statistics.mode(raw.nbytes for raw in raws)
    found = [MappedTensor(raw) for raw in raws if raw.nbytes == size]
    assert len(found) > 3
    return found


def use(window: Window, part: int) -> jax.Array:
    """What a step does with a part: compute something of it and leave."""
    (data,) = window.enter(part)
    result = jnp.asarray(data.astype(jnp.float32).sum())
    window.leave(part, after=result)
    return result


def test_any_order_gives_each_part_its_weights(tensors: list[MappedTensor]) -> None:
    parts = [[tensor] for tensor in tensors]
    window = Window(parts, least_memory(parts) + tensors[0].nbytes)
    assert len(window.pinned) == 1
    ring, count = list(range(len(parts))), len(parts)
    rng = np.random.default_rng(0)
    for part in [*ring, *ring, *ring[: count // 2], *ring, *rng.integers(count, size=30).tolist()]:
        expected = from_raw(tensors[part].raw).data.astype(jnp.float32).sum()
        assert use(window, part) == expected


def test_no_more_is_held_than_was_allowed(tensors: list[MappedTensor], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [[tensor] for tensor in tensors]
    held, most = [0], [0]
    read, drop = window_module.read_part, window_module._drop

    def counting_read(part: list[MappedTensor]) -> list[jax.Array]:
        held[0] += part[0].nbytes
        most[0] = max(most[0], held[0])
        return read(part)

    def counting_drop(part: list[MappedTensor], *rest: object) -> None:
        drop(part, *rest)
        held[0] -= part[0].nbytes

    monkeypatch.setattr(window_module, "read_part", counting_read)
    monkeypatch.setattr(window_module, "_drop", counting_drop)
    memory = least_memory(parts) + 2 * tensors[0].nbytes
    window = Window(parts, memory)
    for _ in range(4):
        for part in range(len(parts)):
            use(window, part)
    # Everything but the pages of the one tensor that is being read.
    assert most[0] == memory - tensors[0].raw.nbytes


def test_what_was_left_is_freed_when_its_result_is_there(tensors: list[MappedTensor]) -> None:
    parts = [[tensor] for tensor in tensors]
    window = Window(parts, least_memory(parts))
    (first,) = window.enter(0)
    window.leave(0, after=jnp.zeros(()))
    window.enter(1)
    window._reader.submit(lambda: None).result()
    assert first.is_deleted()


def test_a_part_that_cannot_be_read_fails_when_it_is_entered_and_can_be_tried_again(
    tensors: list[MappedTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [[tensor] for tensor in tensors]
    window = Window(parts, least_memory(parts))
    read = MappedTensor.read

    def failing(tensor: MappedTensor) -> jax.Array:
        if tensor is tensors[2]:
            raise OSError("the disk is gone")
        return read(tensor)

    monkeypatch.setattr(MappedTensor, "read", failing)
    use(window, 0)
    use(window, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        window.enter(2)
    monkeypatch.setattr(MappedTensor, "read", read)
    assert use(window, 2) == from_raw(tensors[2].raw).data.astype(jnp.float32).sum()


def test_less_memory_than_two_parts_need_is_refused(tensors: list[MappedTensor]) -> None:
    parts = [[tensor] for tensor in tensors]
    least = least_memory(parts)
    assert least == 2 * tensors[0].nbytes + tensors[0].raw.nbytes
    with pytest.raises(ValueError, match=f"must have at least {least} bytes, got {least - 1}"):
        Window(parts, least - 1)
