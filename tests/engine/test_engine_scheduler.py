"""Scheduler and block manager over long random lives of many sequences: no model, no jax, only integers."""

import subprocess
import sys
from array import array
from collections import Counter
from copy import deepcopy
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.engine.blocks import NULL_BLOCK, BlockGroup, BlockManager
from realm_jax.engine.scheduler import Schedulable, ScheduledStep, Scheduler

VOCAB = 3  # few tokens, so that prompts often begin alike


class Device:
    """What a model's cache would hold: for each block and offset, all tokens up to that position."""

    def __init__(self, blocks: BlockManager) -> None:
        self.manager = blocks
        self.cache: list[dict[tuple[int, int], bytes]] = [{} for _ in blocks.groups]

    def run(self, step: ScheduledStep[Any], tokens_of: Any) -> None:
        """Copy, then write what each part computes, then check that each part sees its own past."""
        size = self.manager.block_size
        for copy in step.copies:
            store = self.cache[copy.group]
            for offset in range(size):
                store[copy.target, offset] = store.get((copy.source, offset), b"")
        written: set[tuple[int, int, int]] = set()
        for part in step.parts:
            count = part.count if step.steps == 1 else min(step.steps, part.sequence.longest - part.start - 1)
            for position in range(part.start, part.start + count):
                self._write(part.sequence, position, tokens_of(part.sequence), written)
        for part in step.parts:
            self._check(part, tokens_of(part.sequence))

    def _write(self, sequence: Schedulable, position: int, tokens: bytes, written: set[tuple[int, int, int]]) -> None:
        assert sequence.table is not None
        for number, blocks in enumerate(sequence.table.groups):
            block, offset = blocks[position // self.manager.block_size], position % self.manager.block_size
            assert block != NULL_BLOCK
            # What another sequence reads must not be written over, nor one place be written twice in a step.
            assert (number, block, offset) not in written
            written.add((number, block, offset))
            self.cache[number][block, offset] = tokens[: position + 1]

    def _check(self, part: Any, tokens: bytes) -> None:
        size = self.manager.block_size
        last = part.start + part.count - 1
        for group, store, blocks in zip(self.manager.groups, self.cache, part.sequence.table.groups, strict=True):
            first = 0 if group.window is None else max(0, part.start - group.window + 1)
            for position in range(first, last + 1):
                assert store[blocks[position // size], position % size] == tokens[: position + 1]


class Life:
    """A scheduler with a device, clients that come and go, and results that arrive one launch late."""

    def __init__(self, random: Random, *, groups: list[BlockGroup], block_size: int, seqs: int, budget: int) -> None:
        self.random = random
        self.blocks = BlockManager(groups, block_size)
        self.scheduler: Scheduler[Schedulable] = Scheduler(
            self.blocks, max_num_seqs=seqs, max_num_batched_tokens=budget, max_scored_rows=max(1, budget // 2)
        )
        self.device = Device(self.blocks)
        self.future: dict[Schedulable, bytes] = {}
        self.ends: dict[Schedulable, int] = {}
        self.launched: list[ScheduledStep[Schedulable]] = []
        self.scored: dict[Schedulable, list[int]] = {}
        self.finished: list[Schedulable] = []
        self.aborted: set[Schedulable] = set()
        self.starts: list[Schedulable] = []
        self.preemptions = 0
        self.twins: Twins | None = None

    def arrive(self, longest: int) -> None:
        """One or several sequences; the latter share their prompt."""
        random = self.random
        prompt = random.randint(1, max(1, longest - 2))
        tokens = bytes(random.choices(range(VOCAB), k=prompt))
        if random.random() < 0.3 and self.future:
            tokens = random.choice(list(self.future.values()))[: prompt - 1] + tokens[-1:]
            prompt = len(tokens)
        first: Schedulable | None = None
        for _ in range(random.choice((1, 1, 1, 3))):
            room = random.randint(0, longest - prompt)
            scores = random.random() < 0.2 or (not room and prompt > 1)
            sequence = Schedulable(
                token_ids=array("i", list(tokens)),
                prompt_length=prompt,
                max_tokens=room or int(prompt == 1),
                score_from=random.randint(0, prompt - 1) if scores else None,
                salt=random.choice((b"", b"", b"tenant")),
                shares=(first, prompt - 1) if first is not None and prompt > 1 else None,
            )
            if first is not None:
                sequence.salt = first.salt
            first = first or sequence
            future = tokens + bytes(random.choices(range(VOCAB), k=sequence.max_tokens))
            self.future[sequence] = future
            self.ends[sequence] = len(tokens) + random.randint(min(1, sequence.max_tokens), sequence.max_tokens)
            self.scheduler.add(sequence)
            self.starts.append(sequence)

    def launch(self) -> bool:
        """Schedule one step and run it, with everything checked that can be."""
        last = {part.sequence for part in self.launched[-1].parts} if self.launched else set()
        steps = self.random.choice((1, 1, 4))
        if self.twins is not None:
            self.twins.compare(self.scheduler, steps, last)
        step = self.scheduler.schedule(max_steps=steps, ready=lambda s: not s.in_flight or s in last)
        if step is None:
            return False
        self.preemptions += len(step.preempted)
        assert sum(part.count for part in step.parts) <= self.scheduler.max_num_batched_tokens
        assert sum(len(part.scored) for part in step.parts) <= self.scheduler.max_scored_rows
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        assert len({part.sequence for part in step.parts}) == len(step.parts)
        self.device.run(step, lambda s: self.future[s])
        self.launched.append(step)
        for part in step.parts:
            self.scored.setdefault(part.sequence, []).extend(part.scored)
        self.check_blocks()
        return True

    def collect(self) -> None:
        """Results of the oldest launch: tokens, and the end of some sequences."""
        step = self.launched.pop(0)
        for part in step.parts:
            sequence = part.sequence
            if sequence in self.aborted or sequence in self.finished:
                continue
            if part.samples:
                count = min(step.steps, sequence.longest - part.start - part.count)
                for _ in range(count):
                    known = len(sequence.token_ids)
                    sequence.token_ids.append(self.future[sequence][known])
                    sequence.in_flight -= 1
                    if len(sequence.token_ids) >= self.ends[sequence]:
                        self.end(sequence)
                        break
            elif not sequence.max_tokens and not sequence.pending:
                self.end(sequence)

    def end(self, sequence: Schedulable) -> None:
        self.finished.append(sequence)
        self.scheduler.publish(sequence)
        self.scheduler.remove(sequence)

    def abort(self) -> None:
        alive = [*self.scheduler.running, *self.scheduler.waiting]
        if alive:
            victim = self.random.choice(alive)
            self.aborted.add(victim)
            self.scheduler.remove(victim)

    def check_blocks(self) -> None:
        """Every block is held exactly as often as tables name it, and the rest is free."""
        tables = [s.table for s in (*self.scheduler.running, *self.scheduler.waiting) if s.table is not None]
        for number, (held, free) in enumerate(zip(self.blocks.held(), self.blocks.free, strict=True)):
            named = Counter(b for table in tables for b in table.groups[number] if b != NULL_BLOCK)
            assert held == dict(named)
            assert free == self.blocks.groups[number].num_blocks - 1 - len(named)

    def drain(self) -> None:
        """No arrivals any more: everything must come to its end."""
        idle = 0
        while self.scheduler.running or self.scheduler.waiting or self.launched:
            moved = self.launch() if len(self.launched) < 2 else False
            if self.launched:
                self.collect()
                moved = True
            idle = 0 if moved else idle + 1
            assert idle < 2, "nothing runs, and something waits"


class Twins:
    """Both ways in which a scheduler finds a step, on copies of it: the steady one wherever it finds any."""

    def __init__(self) -> None:
        self.steady = 0
        self.extended = 0

    def compare(self, scheduler: Scheduler[Schedulable], steps: int, last: set[Schedulable]) -> None:
        found = self.step_of(scheduler, "_steady_step", steps, last)
        if found is None:
            return
        self.steady += 1
        self.extended += found["tables"] != [None if s.table is None else s.table.groups for s in scheduler.running]
        assert found == self.step_of(scheduler, "_any_step", steps, last)

    def step_of(
        self, scheduler: Scheduler[Schedulable], way: str, steps: int, last: set[Schedulable]
    ) -> dict[str, Any] | None:
        """All that there is to a step and to the blocks behind it, with sequences by their number."""
        copies: dict[int, Any] = {}
        twin = deepcopy(scheduler, copies)
        known = {copies[id(s)] for s in last if id(s) in copies}
        step = getattr(twin, way)(steps, lambda s: not s.in_flight or s in known)
        if step is None:
            return None
        number = {s: i for i, s in enumerate(twin.running)}
        parts = [(number[p.sequence], p.start, p.count, p.samples, list(p.scored)) for p in step.parts]
        tables = [None if s.table is None else s.table.groups for s in twin.running]
        free = [list(pool.free) for pool in twin.blocks._pools]
        return {"parts": parts, "copies": step.copies, "steps": step.steps, "tables": tables, "free": free}


def live(seed: int, steps: int, twins: Twins | None = None) -> Life:
    random = Random(seed)
    size = random.choice((1, 4, 16))
    longest = random.randint(4, 60)
    window = random.choice((None, 3, 9, 17))
    budget = random.choice((4, 9, 32))
    seqs = random.randint(1, 4)
    needed = -(-(longest + budget) // size) + 2
    groups = [BlockGroup(num_blocks=1 + needed + random.randint(0, 2 * needed))]
    if window is not None:
        groups.append(BlockGroup(num_blocks=1 + needed + random.randint(0, needed), window=window))
    life = Life(random, groups=groups, block_size=size, seqs=seqs, budget=budget)
    life.twins = twins
    for _ in range(steps):
        if random.random() < 0.4 and len(life.scheduler.waiting) < 8:
            life.arrive(longest)
        if random.random() < 0.02:
            life.abort()
        if len(life.launched) < 2:
            life.launch()
        if life.launched and (len(life.launched) == 2 or random.random() < 0.5):
            life.collect()
    life.drain()
    assert life.blocks.idle
    assert len(life.finished) + len(life.aborted) == len(life.starts)
    for sequence in life.finished:
        assert sequence.token_ids.tolist() == list(life.future[sequence][: life.ends[sequence]])
        first = sequence.prompt_length - 1 if sequence.score_from is None else sequence.score_from
        assert life.scored.get(sequence, []) == list(range(first, sequence.prompt_length - 1))
    return life


@settings(max_examples=250)
@given(st.integers(0, 2**32))
def test_random_lives(seed: int) -> None:
    live(seed, 400)


def test_random_lives_meet_everything() -> None:
    lives = [live(seed, 400) for seed in range(20)]
    assert sum(life.preemptions for life in lives) > 20
    assert sum(sequence.cached_tokens > 0 for life in lives for sequence in life.starts) == 0  # given back at the end
    assert sum(len(life.aborted) for life in lives) > 20


def test_a_steady_step_is_the_one_that_is_found_without_the_short_way() -> None:
    twins = Twins()
    for seed in range(25):
        live(seed, 100, twins)
    assert twins.steady > 300 and twins.extended > 60  # with new blocks, copies or blocks given back among them


def scheduler(num_blocks: int = 100, **options: Any) -> Scheduler[Schedulable]:
    usual = {"max_num_seqs": 4, "max_num_batched_tokens": 16, **options}
    return Scheduler(BlockManager([BlockGroup(num_blocks=num_blocks)], 4), **usual)


def sequence(length: int, max_tokens: int = 4, token: int = 1, **options: Any) -> Schedulable:
    tokens = array("i", [token] * length)
    return Schedulable(token_ids=tokens, prompt_length=length, max_tokens=max_tokens, **options)


def counts(step: ScheduledStep[Schedulable] | None) -> list[int]:
    return [] if step is None else [part.count for part in step.parts]


def know(step: ScheduledStep[Schedulable] | None) -> None:
    for part in step.parts if step else []:
        if part.samples:
            part.sequence.token_ids.append(7)
            part.sequence.in_flight -= 1


def test_prompts_are_cut_and_mixed_with_decoding() -> None:
    made = scheduler()
    for length, token in ((6, 1), (30, 2)):
        made.add(sequence(length, token=token))
    first = made.schedule()
    assert counts(first) == [6, 10]
    know(first)
    second = made.schedule()
    assert counts(second) == [1, 15]  # decoding first, then as much of the prompt as the budget has room for
    know(second)
    assert counts(made.schedule()) == [1, 5]


def test_a_later_prompt_skips_what_an_earlier_one_computed() -> None:
    made = scheduler()
    made.add(sequence(14))
    know(made.schedule())
    late = sequence(15)
    made.add(late)
    step = made.schedule()
    assert counts(step) == [1, 3] and late.cached_tokens == 12


def test_other_salts_share_nothing() -> None:
    made = scheduler()
    made.add(sequence(13))
    know(made.schedule())
    late = sequence(13, salt=b"other")
    made.add(late)
    made.schedule()
    assert late.cached_tokens == 0


def test_the_last_to_come_gives_its_blocks_back() -> None:
    made = scheduler(num_blocks=6)
    early, late = sequence(7, 8, token=1), sequence(7, 8, token=2)
    made.add(early)
    made.add(late)
    preempted: list[Schedulable] = []
    for _ in range(30):
        step = made.schedule()
        if step is None:
            break
        preempted.extend(step.preempted)
        know(step)
        for one in [s for s in made.running if len(s.token_ids) == s.longest]:
            made.remove(one)
    assert preempted and set(preempted) == {late}
    assert len(early.token_ids) == len(late.token_ids) == 15
    assert made.blocks.idle


def test_samples_of_one_prompt_share_its_blocks_until_they_write() -> None:
    made = scheduler()
    first = sequence(10)
    others = [sequence(10, shares=(first, 9)) for _ in range(2)]
    for one in (first, *others):
        made.add(one)
    know(made.schedule())
    assert [one.num_computed_tokens for one in others] == [9, 9]
    assert made.blocks.free == (99 - 3,)
    step = made.schedule()
    assert counts(step) == [1, 1, 1] and step is not None
    # The last block has three holders: two of them get copies, and the third writes to the original.
    assert len(step.copies) == 2 and made.blocks.free == (99 - 3 - 2,)


def test_scored_rows_are_bounded_and_each_comes_once() -> None:
    made = scheduler(max_scored_rows=3)
    made.add(sequence(9, max_tokens=0, score_from=2))
    rows = []
    while (step := made.schedule()) is not None:
        rows.append([list(part.scored) for part in step.parts])
    assert rows == [[[2, 3, 4]], [[5, 6, 7]]]


def test_several_steps_in_a_row_only_while_all_decode() -> None:
    made = scheduler()
    made.add(sequence(3, 20))
    step = made.schedule(max_steps=8)
    assert step is not None and step.steps == 1
    know(step)
    step = made.schedule(max_steps=8)
    assert step is not None and step.steps == 8
    assert made.running[0].num_computed_tokens == 3 + 8 and made.running[0].in_flight == 8


def test_what_could_never_run_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 7 blocks of KV cache, but the cache has 5; raise kv_cache_memory"):
        scheduler(num_blocks=6).add(sequence(20, 8))
    with pytest.raises(ValueError, match="max_num_batched_tokens must be at least max_num_seqs = 4, got 3"):
        scheduler(max_num_batched_tokens=3)
    with pytest.raises(ValueError, match="num_blocks must be at least 2"):
        BlockManager([BlockGroup(num_blocks=1)], 4)


@pytest.mark.parametrize("module", ["blocks", "scheduler"])
def test_scheduling_imports_no_jax(module: str) -> None:
    source = f"import realm_jax.engine.{module} as m; print([n for n in vars(m) if 'jax' in n or n in ('np', 'nnx')])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
