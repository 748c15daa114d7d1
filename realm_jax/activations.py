"""Activations: what `LLM.capture` returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Activations(dict[str, np.ndarray]):
    """Arrays by point name: `[prompts, ...]` for one position a prompt, else `[prompts, positions, ...]`.

    Where prompts give different numbers of positions the shorter ones are padded with zeros at the end;
    `lengths int[prompts]` tells how many count. `token_ids` are the prompts as the model saw them.
    """

    def __init__(self, arrays: dict[str, np.ndarray], lengths: np.ndarray, token_ids: list[list[int]]) -> None:
        super().__init__(arrays)
        self.lengths = lengths
        self.token_ids = token_ids


Positions = str | slice


def wanted_rows(positions: Positions, length: int) -> list[int]:
    """The positions of a prompt of `length` tokens that "all", "last" or a slice asks for."""
    if isinstance(positions, slice):
        if positions.step is not None and positions.step < 1:
            raise ValueError(f"positions must step forward, got {positions}; reverse the result instead")
        return list(range(length))[positions]
    if positions == "all":
        return list(range(length))
    if positions == "last":
        return [length - 1]
    raise ValueError(f'positions must be "all", "last" or a slice, got {positions!r}')


def stack(parts: Sequence[dict[str, np.ndarray]], token_ids: list[list[int]], *, squeeze: bool) -> Activations:
    """Join the prompts' arrays `[rows, ...]`, padded to the most rows; `squeeze` drops the axis of a single row."""
    lengths = np.asarray([len(next(iter(part.values()))) for part in parts])
    arrays = {}
    for name, first in parts[0].items():
        shape = np.max([part[name].shape for part in parts], axis=0)
        joined = np.zeros((len(parts), *shape), first.dtype)
        for row, part in zip(joined, parts, strict=True):
            row[tuple(map(slice, part[name].shape))] = part[name]
        arrays[name] = joined[:, 0] if squeeze else joined
    return Activations(arrays, lengths, token_ids)
