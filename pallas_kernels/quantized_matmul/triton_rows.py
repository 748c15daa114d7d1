"""How the CUDA kernels read rows of a stored weight: tiles of its planes' bytes, and words of scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl

from pallas_kernels.quantized_matmul.formats import Format


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRows:
    """Rows of a matrix `[rows, columns]` that a block of the grid multiplies; `planes` and `scales` are references.

    `index` leads to the matrix where the arrays hold several; `rows` says which of those that are referred to.
    """

    form: Format
    planes: list[Any]
    scales: Any
    index: tuple[Any, ...] = ()
    rows: Any = dataclasses.field(default_factory=lambda: slice(None))

    def words(self, first: jax.Array | int, count: int, groups: int) -> tuple[jax.Array, ...]:
        """The words that hold the scales of `count` groups from `first` on; `groups` are all of a row."""
        if not self.form.supers:
            per_word = 1 if self.form.offset else 2
            return tuple(self._word(first // per_word + w) for w in range(count // per_word))
        subs = tuple(self._word(first // 4 + w) for w in range(count // 4))
        return subs + tuple(self._word(groups // 4 + first // 16 + w) for w in range(max(1, count // 16)))

    def _word(self, at: jax.Array | int) -> jax.Array:
        return self.scales[(*self.index, at, self.rows)]

    def tiles(self, before: list[jax.Array], first: jax.Array | int, t: int) -> list[jax.Array]:
        """The tile of each plane that holds group `first + t`; `before`, those of group t - 1, where that is the same.

        `first` is a multiple of the planes' fields.
        """
        return [
            before[at] if t % (8 // bits) else self._tile(at, first // (8 // bits) + t // (8 // bits))
            for at, bits in enumerate(self.form.planes)
        ]

    def _tile(self, plane: int, at: jax.Array | int) -> jax.Array:
        return self.planes[plane][(*self.index, self.rows, pl.ds(at * self.form.group, self.form.group))]
