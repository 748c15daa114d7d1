"""Host batches: sequences become one int32 buffer of a bucketed shape, and a ForwardBatch again inside the jit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.models import ForwardBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The static sizes of a step: `tokens` T, `sequences` B, `pages` P of a block table, `rows` L of logits."""

    tokens: int
    sequences: int
    pages: int
    rows: int
    groups: int

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """The integer arrays of a ForwardBatch, in the order in which the buffer holds them."""
        return {
            "tokens": (self.tokens,),
            "positions": (self.tokens,),
            "slot_mapping": (self.groups, self.tokens),
            "query_start": (self.sequences + 1,),
            "context_lens": (self.sequences,),
            "block_tables": (self.groups, self.sequences, self.pages),
            "logits_indices": (self.rows,),
        }

    @property
    def size(self) -> int:
        """The length of the buffer."""
        return sum(math.prod(dims) for dims in self.fields.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceSlice:
    """The tokens of one sequence that a step computes.

    `start` is the position of the first, `block_table` the sequence's blocks in order of position, `rows` the
    offsets within `tokens` whose logits are wanted.
    """

    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    rows: Sequence[int]


class Buckets:
    """The sizes that steps are padded to, so that few programs serve all of them.

    Tokens and sequences: powers of two, and at least 16 tokens where a sequence has more than one. Pages: 8 times a
    power of four, and at most what the longest allowed sequence needs. Rows: a power of two, or none.
    """

    def __init__(self, *, max_model_len: int, block_size: int, groups: int) -> None:
        self.block_size = block_size
        self.groups = groups
        self.max_pages = -(-max_model_len // block_size)

    def shape(self, slices: Sequence[SequenceSlice], pages: int | None = None, *, steps: int = 1) -> BatchShape:
        """The smallest bucket that holds these slices, for `steps` tokens in a row.

        `pages` fixes the width of the block table.
        """
        total = sum(len(s.tokens) for s in slices)
        tokens = _power_of_two(total) if total == len(slices) else max(16, _power_of_two(total))
        rows = sum(len(s.rows) for s in slices)
        return BatchShape(
            tokens=tokens,
            sequences=_power_of_two(len(slices)),
            pages=self.pages(max(s.start + len(s.tokens) for s in slices) + steps - 1) if pages is None else pages,
            rows=_power_of_two(rows) if rows else 0,
            groups=self.groups,
        )

    def pages(self, context: int) -> int:
        """The width of the block table for a context of this many positions."""
        pages = 8
        while pages * self.block_size < context:
            pages *= 4
        return min(pages, self.max_pages)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def pack_batch(slices: Sequence[SequenceSlice], shape: BatchShape, block_size: int) -> np.ndarray:
    """The slices as `int32[shape.size]`. Padding tokens write to block 0, which no sequence owns."""
    buffer = np.zeros(shape.size, np.int32)
    view = _split(buffer, shape)
    at = rows = 0
    for i, part in enumerate(slices):
        count = len(part.tokens)
        span = slice(at, at + count)
        positions = np.arange(part.start, part.start + count)
        table = np.asarray(part.block_table, np.int32)
        view["tokens"][span] = part.tokens
        view["positions"][span] = positions
        view["slot_mapping"][:, span] = table[positions // block_size] * block_size + positions % block_size
        view["context_lens"][i] = part.start + count
        view["block_tables"][:, i, : min(len(table), shape.pages)] = table[: shape.pages]
        view["logits_indices"][rows : rows + len(part.rows)] = np.asarray(part.rows, np.int32) + at
        at, rows = at + count, rows + len(part.rows)
        view["query_start"][i + 1 :] = at
    return buffer


def unpack_batch(buffer: jax.Array | np.ndarray, shape: BatchShape) -> ForwardBatch:
    """The ForwardBatch that a packed buffer stands for; static slices, inside a jit."""
    return ForwardBatch(**_split(buffer, shape))


def advance(batch: ForwardBatch, tokens: jax.Array, block_size: int) -> ForwardBatch:
    """The next step of a batch with one token of each sequence: `tokens`, one position on; inside a jit.

    Padding stays where it is, and a sequence at the end of its block table too: it has no further token.
    """
    rows = jnp.arange(tokens.shape[0])
    within = (rows < batch.query_start[-1]).astype(jnp.int32)
    last = batch.block_tables.shape[-1] * block_size - 1
    positions = jnp.minimum(batch.positions + within, last)
    blocks = jnp.take_along_axis(batch.block_tables, positions[None, :, None] // block_size, axis=2)[..., 0]
    return dataclasses.replace(
        batch,
        tokens=tokens * within,
        positions=positions,
        slot_mapping=(blocks * block_size + positions[None] % block_size) * within[None],
        context_lens=jnp.maximum(batch.context_lens, positions + within),
    )


def _split(buffer: Any, shape: BatchShape) -> dict[str, Any]:
    """The buffer's fields by name; views of it where it is a numpy array."""
    fields, at = {}, 0
    for name, dims in shape.fields.items():
        size = math.prod(dims)
        fields[name] = buffer[at : at + size].reshape(dims)
        at += size
    return fields
