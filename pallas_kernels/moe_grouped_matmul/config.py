"""How many rows of activations make a block, and how many blocks a batch takes."""

from __future__ import annotations

import math

_LEAST, _MOST = 8, 128


def block_rows(choices: int, experts: int) -> int:
    """The power of two that holds what an expert has on average, of `choices` by all tokens; from 8 to 128.

    Rows that a block does not fill cost products of zeros; an expert of several blocks is read and decoded for each.
    """
    average = math.ceil(choices / experts)
    return min(max(1 << (average - 1).bit_length(), _LEAST), _MOST)


def number_of_blocks(choices: int, experts: int, block: int) -> int:
    """As many as any routing takes: each expert that a token chooses may fill its last block partly."""
    return (choices + min(choices, experts) * (block - 1)) // block
