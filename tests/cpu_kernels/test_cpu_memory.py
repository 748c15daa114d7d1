"""Reading memory alone reads all of it."""

import numpy as np
import pytest

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


@pytest.mark.parametrize("words", [0, 1, 31, 32, 100, 4097])
def test_every_word_is_read(words: int) -> None:
    array = np.random.default_rng(words).integers(2**64, size=words, dtype=np.uint64)
    assert cpu_kernels.read_memory(array) == np.bitwise_xor.reduce(array)


def test_memory_that_is_no_row_of_words_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous words of 8 bytes, got 12 bytes"):
        cpu_kernels.read_memory(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="contiguous words of 8 bytes, got 64 bytes"):
        cpu_kernels.read_memory(np.zeros((8, 16), np.uint8)[:, :8])
