"""Arrays of an arena are apart, aligned and few pieces; reading memory alone reads all of it."""

import jax
import numpy as np
import pytest

import cpu_kernels

needs_library = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


def test_arrays_of_an_arena_lie_behind_each_other() -> None:
    arena = cpu_kernels.Arena(piece_bytes=2**16)
    arrays = [arena.empty(shape) for shape in [(3, 5), (2,), (1,), (64,), (7, 9, 2), (2**15,)]]
    for number, array in enumerate(arrays):
        array[...] = number
    starts = [array.ctypes.data for array in arrays]
    assert all(start % 64 == 0 for start in starts) and starts == sorted(starts) and starts[-1] - starts[0] < 2**10
    assert all((array == number).all() for number, array in enumerate(arrays))
    placed = jax.device_put(arrays[4], jax.devices("cpu")[0])
    assert placed.unsafe_buffer_pointer() == starts[4]


def test_what_no_piece_holds_has_one_of_its_own() -> None:
    arena = cpu_kernels.Arena(piece_bytes=2**10)
    arrays = [arena.empty((size,)) for size in (900, 900, 5000, 10)]
    for number, array in enumerate(arrays):
        array[...] = number
    assert [int(array.max()) for array in arrays] == [int(array.min()) for array in arrays] == [0, 1, 2, 3]


@needs_library
@pytest.mark.parametrize("words", [0, 1, 31, 32, 100, 4097])
def test_every_word_is_read(words: int) -> None:
    array = np.random.default_rng(words).integers(2**64, size=words, dtype=np.uint64)
    assert cpu_kernels.read_memory(array) == np.bitwise_xor.reduce(array)


@needs_library
def test_memory_that_is_no_row_of_words_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous words of 8 bytes, got 12 bytes"):
        cpu_kernels.read_memory(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="contiguous words of 8 bytes, got 64 bytes"):
        cpu_kernels.read_memory(np.zeros((8, 16), np.uint8)[:, :8])
