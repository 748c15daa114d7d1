"""Host batches: sequences become one int32 buffer of a bucketed shape, and a ForwardBatch again inside the jit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.models import ForwardBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The static sizes of a step: `tokens` T, `sequences` B, `pages` P of a block table, `rows` L of logits.

    `edits`: whether the batch says whose edits concern each token.
    """

    tokens: int
    sequences: int
    pages: int
    rows: int
    groups: int
    edits: bool = False

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """The integer arrays of a ForwardBatch, in the order in which the buffer holds them."""
        fields = {
            "tokens": (self.tokens,),
            "positions": (self.tokens,),
            "slot_mapping": (self.groups, self.tokens),
            "query_start": (self.sequences + 1,),
            "context_lens": (self.sequences,),
            "block_tables": (self.groups, self.sequences, self.pages),
            "logits_indices": (self.rows,),
        }
        return {**fields, "edit_ids": (self.tokens,)} if self.edits else fields

    @property
    def size(self) -> int:
        """The length of the buffer."""
        return sum(math.prod(dims) for dims in self.fields.values())


@dataclasses.dataclass(slots=True, kw_only=True)
class SequenceSlice:
    """The tokens of one sequence that a step computes.

    Attributes:
        tokens: their ids; -1 - r stands for the token that row r of the step before sampled.
        start: the position of the first.
        block_tables: for each group of layers the sequence's blocks in order of position, or one table for all.
        rows: offsets within `tokens` whose logits are wanted, to sample from or to look at.
        scored: offsets whose logits are wanted to score the token that follows; behind all `rows` of a batch.
        edit_id: whose edits concern it, 0 for nobody's.
    """

    tokens: Sequence[int]
    start: int
    block_tables: Sequence[Sequence[int]]
    rows: Sequence[int]
    scored: Sequence[int] = ()
    edit_id: int = 0


class Buckets:
    """The sizes that steps are padded to, so that few programs serve all of them.

    Tokens: the sequences' bucket where each has one, else a power of two and at least 16. Sequences: a power of two up
    to 16 and then also the middle between two of them; where one has several tokens, a power of four. Pages: 128 times
    a power of four, or 4 times a power of two where a step `reads_whole_tables`, and at most what the longest allowed
    sequence needs. Rows: the sequences' bucket or none; with scored ones a power of four, at least 16.
    """

    def __init__(self, *, max_model_len: int, block_size: int, groups: int, reads_whole_tables: bool = False) -> None:
        self.block_size = block_size
        self.groups = groups
        self._least_pages, self._growth = (4, 2) if reads_whole_tables else (128, 4)
        self.max_pages = -(-max_model_len // block_size)

    def shape(
        self, slices: Sequence[SequenceSlice], pages: int | None = None, *, steps: int = 1, edits: bool = False
    ) -> BatchShape:
        """The smallest bucket that holds these slices, for `steps` tokens in a row.

        `pages` fixes the width of the block table; `edits` as in BatchShape.
        """
        total, count = sum([len(s.tokens) for s in slices]), len(slices)
        rows, scored = sum([len(s.rows) for s in slices]), sum([len(s.scored) for s in slices])
        decode = total == count
        sequences = _half_power(count) if decode else _power_of(4, count)
        if rows > count:
            rows = _power_of(2, rows)
        elif rows:
            rows = sequences
        return BatchShape(
            tokens=sequences if decode else max(16, _power_of(2, total)),
            sequences=sequences,
            pages=self.pages(max([s.start + len(s.tokens) for s in slices]) + steps - 1) if pages is None else pages,
            rows=max(16, _power_of(4, rows + scored)) if scored else rows,
            groups=self.groups,
            edits=edits,
        )

    def decode_rows(self, count: int) -> int:
        """The rows of a step in which each of `count` sequences has one token."""
        return _half_power(count)

    def every_shape(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> list[BatchShape]:
        """All shapes that steps within these limits can have, but for those with scored rows or with edits."""
        counts = range(1, max_num_seqs + 1)
        sizes = {(_half_power(count), _half_power(count)) for count in counts}
        for total in {16, *(_power_of(2, total) for total in range(2, max_num_batched_tokens + 1))}:
            fit = min(total, max_num_batched_tokens) - 1
            sizes |= {(max(16, total), _power_of(4, count)) for count in counts if count <= fit}
        contexts = [1]
        while self.pages(contexts[-1]) < self.max_pages:
            contexts.append(self.pages(contexts[-1]) * self.block_size + 1)
        widths = {self.pages(context) for context in contexts}
        return [
            BatchShape(tokens=tokens, sequences=sequences, pages=pages, rows=rows, groups=self.groups)
            for tokens, sequences in sorted(sizes)
            for pages in sorted(widths)
            for rows in (0, sequences)
        ]

    def pages(self, context: int) -> int:
        """The width of the block table for a context of this many positions."""
        pages = self._least_pages
        while pages * self.block_size < context:
            pages *= self._growth
        return min(pages, self.max_pages)


def _power_of(base: int, n: int) -> int:
    power = 1
    while power < n:
        power *= base
    return power


def _half_power(n: int) -> int:
    power = _power_of(2, n)
    return power // 4 * 3 if power > 16 and n <= power // 4 * 3 else power


def pack_batch(slices: Sequence[SequenceSlice], shape: BatchShape, block_size: int) -> np.ndarray:
    """The slices as `int32[shape.size]`. Padding tokens write to block 0, which no sequence owns."""
    buffer = np.zeros(shape.size, np.int32)
    view = _split(buffer, shape)
    counts = [len(part.tokens) for part in slices]
    starts = list(itertools.accumulate(counts, initial=0))
    wanted = [start + row for start, part in zip(starts, slices, strict=False) for row in part.rows]
    wanted += [start + row for start, part in zip(starts, slices, strict=False) for row in part.scored]
    view["logits_indices"][: len(wanted)] = wanted
    _pack_tables(view["block_tables"], slices)
    if max(counts) == 1:
        _pack_single_tokens(view, slices, block_size)
    else:
        _pack_runs(view, slices, counts, block_size)
    return buffer


def _pack_tables(tables: np.ndarray, slices: Sequence[SequenceSlice]) -> None:
    pages = tables.shape[-1]
    for i, part in enumerate(slices):
        for group, rows in enumerate(tables):
            blocks = part.block_tables[group if len(part.block_tables) > 1 else 0]
            rows[i, : min(len(blocks), pages)] = blocks[:pages]


def _pack_single_tokens(view: dict[str, np.ndarray], slices: Sequence[SequenceSlice], block_size: int) -> None:
    """What `_pack_runs` does, for slices of one token each: all of them at once."""
    count = len(slices)
    positions = np.array([part.start for part in slices], np.int32)
    blocks = view["block_tables"][:, np.arange(count), positions // block_size]
    view["tokens"][:count] = [part.tokens[0] for part in slices]
    view["positions"][:count] = positions
    view["slot_mapping"][:, :count] = blocks * block_size + positions % block_size
    view["context_lens"][:count] = positions + 1
    view["query_start"][1:] = np.minimum(np.arange(1, len(view["query_start"])), count)
    if "edit_ids" in view:
        view["edit_ids"][:count] = [part.edit_id for part in slices]


def _pack_runs(
    view: dict[str, np.ndarray], slices: Sequence[SequenceSlice], counts: Sequence[int], block_size: int
) -> None:
    at = 0
    for i, (part, count) in enumerate(zip(slices, counts, strict=True)):
        positions, own = np.arange(part.start, part.start + count), slice(at, at + count)
        view["tokens"][own] = part.tokens
        view["positions"][own] = positions
        blocks = view["block_tables"][:, i, positions // block_size]
        view["slot_mapping"][:, own] = blocks * block_size + positions % block_size
        view["context_lens"][i] = part.start + count
        if "edit_ids" in view:
            view["edit_ids"][own] = part.edit_id
        at += count
        view["query_start"][i + 1 :] = at


def unpack_batch(buffer: jax.Array | np.ndarray, shape: BatchShape) -> ForwardBatch:
    """The ForwardBatch that a packed buffer stands for; static slices, inside a jit."""
    return ForwardBatch(**_split(buffer, shape))


def tokens_of(buffer: np.ndarray, shape: BatchShape) -> np.ndarray:
    """The tokens in a packed buffer, `int32[T]`; a view."""
    return _split(buffer, shape)["tokens"]


def edit_ids_of_rows(buffer: np.ndarray, shape: BatchShape) -> np.ndarray | None:
    """Whose edits concern each row of logits, `int32[L]`, where a packed buffer says so."""
    view = _split(buffer, shape)
    return view["edit_ids"][view["logits_indices"]] if shape.edits else None


def resolve_tokens(batch: ForwardBatch, previous: jax.Array) -> ForwardBatch:
    """The batch with each token -1 - r replaced by `previous[r]`, inside a jit."""
    sampled = previous[jnp.maximum(-1 - batch.tokens, 0)]
    return dataclasses.replace(batch, tokens=jnp.where(batch.tokens < 0, sampled, batch.tokens))


def advance(batch: ForwardBatch, tokens: jax.Array, alive: jax.Array, block_size: int) -> ForwardBatch:
    """The next step of a batch with one token of each sequence: `tokens`, one position on; inside a jit.

    Padding and sequences that are not `alive` stay where they are.
    """
    on = alive & (jnp.arange(tokens.shape[0]) < batch.query_start[-1])
    positions = batch.positions + on.astype(jnp.int32)
    blocks = jnp.take_along_axis(batch.block_tables, positions[None, :, None] // block_size, axis=2)[..., 0]
    slots = blocks * block_size + positions[None] % block_size
    return dataclasses.replace(
        batch,
        tokens=jnp.where(on, tokens, batch.tokens),
        positions=positions,
        slot_mapping=jnp.where(on, slots, batch.slot_mapping),
        context_lens=jnp.maximum(batch.context_lens, jnp.where(on, positions + 1, 0)),
    )


def _split(buffer: Any, shape: BatchShape) -> dict[str, Any]:
    """The buffer's fields by name; views of it where it is a numpy array."""
    fields, at = {}, 0
    for name, dims in shape.fields.items():
        size = math.prod(dims)
        fields[name] = buffer[at : at + size].reshape(dims)
        at += size
    return fields
