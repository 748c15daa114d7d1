"""Scheduler: which tokens of which sequences the next step computes. Plain integers; it knows no model and no jax."""

from __future__ import annotations

import dataclasses
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from realm_jax.engine.blocks import NULL_BLOCK, BlockCopy, BlockManager, BlockTable


@dataclasses.dataclass(eq=False, kw_only=True)
class Schedulable:
    """What the scheduler knows of a sequence. All but the first four fields are its own to change.

    Attributes:
        token_ids: prompt and known output; the owner appends to it.
        prompt_length: how many of them are the prompt.
        max_tokens: tokens to generate at most; 0 computes the prompt alone, but for its last token, which nothing
            follows.
        score_from: the first position whose following prompt token is to be scored, None for none. What is scored
            cannot be taken from the cache of prefixes.
        salt: sequences share prefixes only under the same salt.
        shares: a sequence scheduled before this one, and how many leading positions are the same in both: they are
            computed once.
        num_computed_tokens: positions that launched steps have written.
        in_flight: tokens sampled by launched steps that are not in `token_ids` yet.
        scored: positions that launched steps have scored.
        keys: names of its leading full blocks, as far as they were needed.
        table: the blocks it holds, None where it holds none.
        cached_tokens: positions that were found in the cache when it was last admitted.
    """

    token_ids: array[int]
    prompt_length: int
    max_tokens: int
    score_from: int | None = None
    salt: bytes = b""
    shares: tuple[Schedulable, int] | None = None
    num_computed_tokens: int = 0
    in_flight: int = 0
    scored: int = 0
    keys: list[bytes] = dataclasses.field(default_factory=list)
    table: BlockTable | None = None
    cached_tokens: int = 0

    @property
    def length(self) -> int:
        """Tokens so far, known or sampled by a launched step."""
        return len(self.token_ids) + self.in_flight

    @property
    def longest(self) -> int:
        """Tokens the sequence can come to have."""
        return self.prompt_length + self.max_tokens

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next one can be sampled, or before nothing is left to do."""
        if self.max_tokens and self.length >= self.longest:
            return 0
        goal = self.length if self.max_tokens else self.length - 1
        return goal - self.num_computed_tokens

    @property
    def decoding(self) -> bool:
        """Whether its prompt is computed, so that each step gives it a token."""
        return self.num_computed_tokens >= self.prompt_length and self.pending <= 1

    @property
    def shared_positions(self) -> int:
        """Leading positions that are taken from the sequence that it `shares` with."""
        count = self.shares[1] if self.shares else 0
        return count if self.score_from is None else min(count, self.score_from)

    def to_score(self, count: int) -> range:
        """Which of the next `count` positions are to be scored."""
        if self.score_from is None:
            return range(0)
        first = max(self.num_computed_tokens, self.score_from, self.scored)
        return range(first, max(first, min(self.num_computed_tokens + count, self.prompt_length - 1)))


S = TypeVar("S", bound=Schedulable)
_NOTHING = range(0)


@dataclasses.dataclass(slots=True, kw_only=True)
class Part(Generic[S]):
    """`count` tokens of one sequence from position `start`; a token is sampled after them where `samples`.

    `scored`: the positions among them whose following token is to be scored.
    """

    sequence: S
    start: int
    count: int
    samples: bool
    scored: range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledStep(Generic[S]):
    """One launch of the device: its parts, and `steps` tokens in a row for each where all of them decode."""

    parts: list[Part[S]]
    copies: list[BlockCopy]
    preempted: list[S]
    steps: int = 1

    @property
    def decodes(self) -> bool:
        """Whether the step is nothing but one token of each sequence."""
        return all(part.count == 1 and part.samples for part in self.parts)


class Scheduler(Generic[S]):
    """Continuous batching, first come, first served.

    Each step has room for `max_num_batched_tokens` tokens: one of every sequence that decodes, then prompts in order of
    arrival, cut into chunks where they do not fit. A sequence is admitted when its prompt fits into the free blocks.
    Where a sequence that decodes lacks a block, the one that came last gives its own back and is computed anew later.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_scored_rows: int = 256,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs = {max_num_seqs}, got {max_num_batched_tokens}"
            )
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_scored_rows = max_scored_rows
        self.waiting: deque[S] = deque()
        self.running: list[S] = []
        self._sharers: dict[int, list[S]] = {}

    def add(self, sequence: S) -> None:
        """Queue a sequence. ValueError if it could never be computed."""
        # Nothing follows the last token, so that it is never written.
        needed = self.blocks.blocks_for(max(1, sequence.longest - 1), self.max_num_batched_tokens)
        for group, count in zip(self.blocks.groups, needed, strict=True):
            if count > group.num_blocks - 1:
                raise ValueError(
                    f"a sequence of up to {sequence.longest} tokens needs {count} blocks of KV cache, but the cache "
                    f"has {group.num_blocks - 1}; raise kv_cache_memory or lower max_tokens"
                )
        if sequence.shares is not None and sequence.shared_positions:
            self._sharers.setdefault(id(sequence.shares[0]), []).append(sequence)
        self.waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Take a sequence that ended out of queue and batch and give its blocks back; unknown ones are ignored."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            return
        self._drop(sequence)
        self._sharers.pop(id(sequence), None)
        if sequence.shares is not None:
            others = self._sharers.get(id(sequence.shares[0]), [])
            if sequence in others:
                others.remove(sequence)

    def schedule(
        self, *, max_steps: int = 1, ready: Callable[[S], bool] = lambda _: True, steady: bool = False
    ) -> ScheduledStep[S] | None:
        """The next step, whose tokens count as computed from now on; None where there is nothing to compute.

        `max_steps`: decode steps that may run in a row. `ready`: whether a sequence's next token is known to whoever
        builds the batch; others sit the step out. `steady`: nothing but a step in which all that run go on decoding.
        """
        step = self._steady_step(max_steps, ready)
        if step is None and not steady:
            step = self._any_step(max_steps, ready)
        if step is not None:
            for part in step.parts:
                self._launched(part, step.steps)
        return step

    def _steady_step(self, max_steps: int, ready: Callable[[S], bool]) -> ScheduledStep[S] | None:
        """The step in which all that run decode, and blocks are plenty; None where there is more to decide.

        It is what `_any_step` finds then, in one look at each sequence.
        """
        if self.waiting and len(self.running) < self.max_num_seqs:
            return None
        parts: list[Part[S]] = []
        short: list[Part[S]] = []
        for sequence in self.running:
            start, length = sequence.num_computed_tokens, sequence.length
            if start < sequence.prompt_length or not sequence.max_tokens:
                return None
            left = sequence.longest - length
            if not left:
                continue  # its last tokens are on their way
            if start + 1 != length or not ready(sequence):
                return None
            part = Part(sequence=sequence, start=start, count=1, samples=True, scored=_NOTHING)
            parts.append(part)
            if not self.blocks.writable(_held_by(sequence), start, start + min(max_steps, left)):
                short.append(part)
        # What one writes lies in this many blocks at most, whether new ones, copies of shared ones, or its own.
        most = -(-max_steps // self.blocks.block_size) + 1
        if not parts or not self.blocks.fits([most * len(short)] * len(self.blocks.groups)):
            return None
        step = _Draft[S](budget=0, rows=0, parts=parts)
        for ahead in (1, max_steps) if max_steps > 1 else (1,):
            for part in short:
                self._hold(step, part, ahead)
        return ScheduledStep(parts=parts, copies=step.copies, preempted=[], steps=max_steps)

    def _any_step(self, max_steps: int, ready: Callable[[S], bool]) -> ScheduledStep[S] | None:
        step = _Draft[S](budget=self.max_num_batched_tokens, rows=self.max_scored_rows)
        able = [s for s in self.running if s.pending and ready(s)]
        decoding = [s for s in able if s.decoding]
        prefilling = [s for s in able if not s.decoding]
        for sequence in decoding:
            if sequence in self.running:
                self._decode(step, sequence)
        for sequence in prefilling:
            if sequence in self.running:
                self._prefill(step, sequence)
        self._admit(step)
        if not step.parts and not any(sequence.in_flight for sequence in (*self.running, *self.waiting)):
            self._break_stalemate(step)
        if not step.parts:
            return None
        steps = self._in_a_row(step, max_steps)
        return ScheduledStep(parts=step.parts, copies=step.copies, preempted=step.preempted, steps=steps)

    def reset(self) -> None:
        """Forget all prefixes: the cache's contents are lost."""
        self.blocks.forget()

    def _decode(self, step: _Draft[S], sequence: S) -> None:
        """One token of a running sequence; those that came last make room if they must."""
        while not self._try(step, sequence, 1):
            victim = next(s for s in reversed(self.running) if not step.contains(s))
            self._preempt(step, victim)
            if victim is sequence:
                return

    def _prefill(self, step: _Draft[S], sequence: S) -> None:
        """As much of a running sequence's prompt as fits; it waits where blocks are lacking."""
        self._reuse(sequence)
        self._try(step, sequence, self._chunk(step, sequence))

    def _admit(self, step: _Draft[S]) -> None:
        blocked: list[S] = []
        while self.waiting and len(self.running) < self.max_num_seqs and step.budget:
            sequence = self.waiting[0]
            if self._awaits_another(sequence):
                blocked.append(self.waiting.popleft())
            elif not self._start(step, sequence):
                break
        self.waiting.extendleft(reversed(blocked))

    def _awaits_another(self, sequence: S) -> bool:
        """Whether what it shares with another sequence is about to be computed there."""
        shares = sequence.shares
        return shares is not None and sequence.table is None and sequence in self._sharers.get(id(shares[0]), ())

    def _start(self, step: _Draft[S], sequence: S) -> bool:
        """Admit the first of the queue, if all of it fits into the free blocks."""
        if sequence.in_flight:
            return False
        forked = sequence.table is not None
        if not forked:
            sequence.table = self.blocks.new_table(sequence.salt, sequence.keys)
            self._reuse(sequence)
            sequence.cached_tokens = sequence.num_computed_tokens
        if not self._fits(sequence) or not self._try(step, sequence, self._chunk(step, sequence)):
            if not forked:
                self._drop(sequence)
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        return True

    def _fits(self, sequence: S) -> bool:
        length = max(1, min(sequence.length + 1, sequence.longest - 1))
        needed = self.blocks.blocks_for(length, self.max_num_batched_tokens)
        held = [sum(block != NULL_BLOCK for block in blocks) for blocks in _held_by(sequence).groups]
        return self.blocks.fits([most - own for most, own in zip(needed, held, strict=True)])

    def _chunk(self, step: _Draft[S], sequence: S) -> int:
        """How many tokens of a prompt the step has room for."""
        count = min(sequence.pending, step.budget)
        scored = sequence.to_score(count)
        return count if len(scored) <= step.rows else scored.start + step.rows - sequence.num_computed_tokens

    def _reuse(self, sequence: S) -> None:
        """Skip what is in the cache of prefixes by now; one token at least is left to compute."""
        limit = min(sequence.num_computed_tokens + sequence.pending - 1, len(sequence.token_ids))
        if sequence.score_from is not None and sequence.scored < sequence.prompt_length - 1:
            limit = min(limit, max(sequence.score_from, sequence.scored))
        table, computed = _held_by(sequence), sequence.num_computed_tokens
        if limit > computed:
            sequence.num_computed_tokens = self.blocks.reuse(table, sequence.token_ids, computed, limit)

    def _try(self, step: _Draft[S], sequence: S, count: int) -> bool:
        """Add tokens of a sequence to the step, if there are any and blocks for them."""
        start = sequence.num_computed_tokens
        copies = self.blocks.extend(_held_by(sequence), start, start + count) if count else None
        if copies is None:
            return False
        scored = sequence.to_score(count)
        samples = bool(sequence.max_tokens) and count == sequence.pending
        step.copies.extend(copies)
        step.budget -= count
        step.rows -= len(scored)
        step.parts.append(Part(sequence=sequence, start=start, count=count, samples=samples, scored=scored))
        return True

    def _preempt(self, step: _Draft[S], victim: S) -> None:
        """Back to the head of the queue: its blocks are needed by those that came before."""
        self.running.remove(victim)
        self._drop(victim)
        self.waiting.appendleft(victim)
        step.preempted.append(victim)

    def _break_stalemate(self, step: _Draft[S]) -> None:
        """Prompts hold all blocks between them, or sequences in the queue do: the last ones give theirs back."""
        for sequence in self.waiting:
            self._drop(sequence)
        unfinished = [s for s in self.running if s.pending]
        while not step.parts and unfinished:
            self._prefill(step, unfinished[0])
            if not step.parts:
                self._preempt(step, unfinished.pop())
        if not step.parts and not self.running:
            self._admit(step)

    def _drop(self, sequence: S) -> None:
        if sequence.table is not None:
            self.blocks.release(sequence.table)
            sequence.table = None
        sequence.num_computed_tokens = sequence.cached_tokens = 0

    def _in_a_row(self, step: _Draft[S], most: int) -> int:
        """How many decode steps may follow each other: all of `most`, or one where anything else is to be done."""
        decodes = all(part.count == 1 and part.samples and not part.scored for part in step.parts)
        if most == 1 or not decodes or step.preempted or (self.waiting and len(self.running) < self.max_num_seqs):
            return 1
        return most if all(self._hold(step, part, most) for part in step.parts) else 1

    def _hold(self, step: _Draft[S], part: Part[S], steps: int) -> bool:
        """Let a sequence that decodes hold the blocks of `steps` tokens in a row, if there are that many."""
        sequence = part.sequence
        ahead = min(steps, sequence.longest - sequence.length)
        copies = self.blocks.extend(_held_by(sequence), part.start, part.start + ahead)
        step.copies.extend(copies or ())
        return copies is not None

    def _launched(self, part: Part[S], steps: int) -> None:
        sequence = part.sequence
        tokens = min(steps, sequence.longest - sequence.length) if part.samples else 0
        sequence.num_computed_tokens += part.count if steps == 1 else tokens
        sequence.in_flight += tokens
        if part.scored:
            sequence.scored = part.scored.stop
        self.publish(sequence)

    def publish(self, sequence: S) -> None:
        """Let others use what the sequence has computed, as far as its tokens are known."""
        if sequence.table is None:
            return
        self.blocks.share(sequence.table, sequence.token_ids, sequence.num_computed_tokens)
        sharers: Iterable[S] = self._sharers.get(id(sequence), ())
        for other in list(sharers):
            positions = other.shared_positions
            if sequence.num_computed_tokens >= positions and sequence.table is not None:
                self._sharers[id(sequence)].remove(other)
                if other.table is None and (forked := self.blocks.fork(sequence.table, positions)) is not None:
                    other.table, other.num_computed_tokens, other.cached_tokens = forked, positions, positions


@dataclasses.dataclass(kw_only=True)
class _Draft(Generic[S]):
    """A step in the making, and what it has room for: tokens, and scored rows."""

    budget: int
    rows: int
    parts: list[Part[S]] = dataclasses.field(default_factory=list)
    copies: list[BlockCopy] = dataclasses.field(default_factory=list)
    preempted: list[S] = dataclasses.field(default_factory=list)

    def contains(self, sequence: S) -> bool:
        return any(part.sequence is sequence for part in self.parts)


def _held_by(sequence: Schedulable) -> BlockTable:
    if sequence.table is None:
        raise ValueError("a scheduled sequence must hold blocks; schedule it first")
    return sequence.table
