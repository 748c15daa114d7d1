"""Engine: keeps the device busy with scheduled steps, and hands each sampled token to its sequence."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import Any

import jax
import numpy as np

from realm_jax.engine.batch import BatchShape, SequenceSlice
from realm_jax.engine.blocks import BlockManager
from realm_jax.engine.cohort import Cohort
from realm_jax.engine.runner import Runner, StepInput, StepKey, avals
from realm_jax.engine.scheduler import Part, ScheduledStep, Scheduler
from realm_jax.engine.sequence import PositionLogprobs, Sequence, TokenLogprobs
from realm_jax.engine.stats import EngineStats, StepTrace
from realm_jax.engine.steps import Limits
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.sampling import SampleOutput, SamplingPlan, pack, plan_for

_CROWD = 5  # sequences
_SCORED_BYTES = 2**28  # of float32 logits in a step; sampling reads them several times


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much runs at once.

    Attributes:
        max_num_seqs: sequences that are computed together.
        max_num_batched_tokens: tokens of a step, of prompts and decoding sequences together.
        decode_steps: steps that may run in a row on the device while nothing but decoding is to be done.
        crowded_decode_steps: likewise while more than four sequences run, where one that ends keeps its place, and one
            that comes waits, until the row ends; at most `decode_steps`, None for as many.
        prefix_caching: whether prompts take over blocks of earlier ones that begin alike.
        async_scheduling: whether a step is launched while the one before still runs.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    decode_steps: int = 1
    crowded_decode_steps: int | None = None
    prefix_caching: bool = True
    async_scheduling: bool = True

    def steps_of(self, sequences: int) -> int:
        """How many steps may run in a row while so many sequences do."""
        crowded = self.crowded_decode_steps
        return self.decode_steps if crowded is None or sequences < _CROWD else min(self.decode_steps, crowded)


@dataclasses.dataclass(frozen=True)
class _Launch:
    """A step on the device: what it was to do, and its output, which may still be on its way."""

    step: ScheduledStep[Sequence]
    sampled: list[Sequence]
    output: SampleOutput | None


@dataclasses.dataclass(frozen=True)
class _History:
    """On the device, the tokens of each sequence of a cohort as the newest launch leaves them: `int32[rows, width]`."""

    cohort: Cohort
    array: Any

    def serves(self, sequences: list[Sequence], rows: int, steps: int) -> bool:
        """Whether it is that of these sequences, none of them at its end, and there is room for `steps` tokens more.

        `rows`: of a launch in which each has one token.
        """
        room = self.array.shape[1] - steps
        same = sequences == self.cohort.sequences and rows == self.cohort.rows
        return same and all(s.length <= room and s.length < s.longest for s in sequences)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """One token for each of some sequences; `output`: a SampleOutput of numpy arrays, for what is to be reported."""

    sequences: list[Sequence]
    ids: list[int]
    output: Any


class Engine:
    """Continuous batching of sequences over a runner's cache.

    Up to two launches are on the device: while one runs, its tokens unknown, the next is scheduled on the assumption
    that no sequence ends in it; what a sequence that ends was given beyond its end is dropped.
    """

    def __init__(self, runner: Runner, config: EngineConfig, *, trace: StepTrace | None = None) -> None:
        self.runner = runner
        self.config = config
        self.blocks = BlockManager(runner.groups, runner.block_size, prefix_caching=config.prefix_caching)
        self.scheduler: Scheduler[Sequence] = Scheduler(
            self.blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_scored_rows=max(16, _SCORED_BYTES // (4 * runner.vocab_size)),
        )
        self.stats = EngineStats()
        self._trace = trace
        self._user = object()
        self._taps = NO_TAPS
        self._launched: deque[_Launch] = deque()
        self._ahead: deque[_Tokens] = deque()
        self._previous: Any = np.zeros(config.max_num_seqs, np.int32)
        self._rows: dict[Sequence, int] = {}
        self._plan: tuple[list[Sequence], SamplingPlan] = ([], SamplingPlan())
        self._cohort: Cohort | None = None
        self._history: _History | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would compute or hand out anything."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. ValueError if it could never be computed."""
        self.scheduler.add(sequence)
        self.stats.requests += 1

    def abort(self, sequences: SequenceOf[Sequence]) -> None:
        """Finish sequences now and give back what they hold."""
        for sequence in sequences:
            self.scheduler.remove(sequence)
            if not sequence.finished:
                sequence.finish("abort")
                self.stats.aborted += 1
        if not self.has_work:
            self._launched.clear()
            self._ahead.clear()

    def use(self, taps: Taps) -> None:
        """Apply these edits to all steps from now on; nothing must be running. Known prefixes are forgotten."""
        if taps != self._taps:
            if self.has_work:
                raise RuntimeError("taps must not change while sequences run; abort them first")
            self._taps = taps
            self.scheduler.reset()

    def step(self) -> list[Sequence]:
        """Keep the device busy and return the sequences that got a token or came to their end."""
        self._claim_cache()
        try:
            most = 2 if self.config.async_scheduling else 1
            while len(self._launched) + bool(self._ahead) < most and self._launch():
                pass
            done = [] if self._ahead or not self._launched else self._collect()
        except BaseException:
            self._fail()
            raise
        return done + (self._distribute(self._ahead.popleft()) if self._ahead else [])

    def warm_up(self, sequences: SequenceOf[Sequence]) -> None:
        """Compile the first decode step of these sequences beside the prefill that comes before it."""
        together = [s for s in sequences if s.max_tokens > 1][: self.config.max_num_seqs]
        plan = plan_for([s.params for s in together])
        if together and not plan.masked:
            slices = [SequenceSlice(tokens=(0,), start=s.num_tokens, block_tables=((),), rows=(0,)) for s in together]
            given = self._input(slices, together, plan, steps=self._most_steps(plan))
            self.runner.prepare([self.runner.step_key(given, self._taps)])

    def compile_steps(self, plans: Iterable[SamplingPlan]) -> None:
        """Compile every program that steps with these plans can need, several at a time, and wait for them.

        ValueError for a plan the shapes of whose operands depend on the requests.
        """
        keys = []
        for plan in plans:
            if plan.varies:
                raise ValueError(
                    "sampling_params must have no penalties, logit_bias, min_tokens, logits_processors or "
                    "structured_outputs, whose programs depend on the requests; leave them out"
                )
            keys += self._keys(plan)
        copies = self.config.max_num_seqs * len(self.blocks.groups)
        for program in (*self.runner.prepare(dict.fromkeys(keys)), *self.runner.prepare_copies(copies)):
            program.result()

    def _keys(self, plan: SamplingPlan) -> Iterator[StepKey]:
        """The programs of every step with this plan."""
        seqs, tokens = self.config.max_num_seqs, self.config.max_num_batched_tokens
        for shape in self.runner.buckets.every_shape(max_num_seqs=seqs, max_num_batched_tokens=tokens):
            own = plan if shape.rows else None
            sampling = pack([], plan, size=shape.rows) if shape.rows else None
            operands = avals((self._previous, sampling, None))
            yield StepKey(shape=shape, plan=own, taps=self._taps, operands=operands)
            steps = self._most_steps(plan)
            if shape.rows == shape.tokens and steps > 1:
                operands = avals((self._previous, sampling, Limits.of([], [], shape.rows)))
                yield StepKey(shape=shape, plan=own, taps=self._taps, operands=operands, steps=steps)

    def _claim_cache(self) -> None:
        """Other engines may have used the cache since: what this one remembers of it is gone then."""
        if self.runner.user is self._user:
            return
        if not self.blocks.idle:
            raise RuntimeError("another engine has used this cache meanwhile; let one engine end before using another")
        self.scheduler.reset()
        self.runner.user = self._user

    def _launch(self) -> bool:
        """Schedule a step and send it to the device; False where there is nothing to send now."""
        plan = self._running_plan()
        steps, behind = self._steps_now(plan), bool(self._launched or self._ahead)
        if behind and not self._can_follow(plan, steps):
            return False  # the host must see the tokens first
        with jax.profiler.TraceAnnotation("schedule"):
            steady = behind and plan.history
            step = self.scheduler.schedule(max_steps=steps, ready=self._ready, steady=steady)
        if step is None:
            return False
        plan = self._running_plan()
        sampled = [part.sequence for part in step.parts if part.samples]
        with jax.profiler.TraceAnnotation("dispatch"):
            if step.copies:
                self.runner.copy(step.copies)
            given = self._input_of(step, plan)
            output, self._previous, history = self.runner.step(given, self._taps)
        self._history = None if history is None or self._cohort is None else _History(self._cohort, history)
        if sampled:
            self._rows = {sequence: row for row, sequence in enumerate(sampled)}
        self._launched.append(_Launch(step, sampled, output))
        self._count(step)
        return True

    def _slice(self, part: Part[Sequence]) -> SequenceSlice:
        sequence, end = part.sequence, part.start + part.count
        known = sequence.token_ids[part.start : end]
        table = sequence.table
        return SequenceSlice(
            tokens=known if len(known) == part.count else (-1 - self._rows[sequence],),
            start=part.start,
            block_tables=() if table is None else table.groups,
            rows=(part.count - 1,) if part.samples else (),
            scored=range(part.scored.start - part.start, part.scored.stop - part.start) if part.scored else (),
            edit_id=sequence.edit_id,
        )

    def _input_of(self, step: ScheduledStep[Sequence], plan: SamplingPlan) -> StepInput:
        slices = [self._slice(part) for part in step.parts]
        sampled = [part.sequence for part in step.parts if part.samples]
        scored = [part for part in step.parts if part.scored]
        if not sampled and not scored:
            return StepInput(slices=slices, shape=self._shape(slices), previous=self._previous)
        targets = [t for part in scored for t in part.sequence.token_ids[part.scored.start + 1 : part.scored.stop + 1]]
        if scored:
            plan = plan.scoring(max(part.sequence.params.prompt_logprobs or 0 for part in scored))
        return self._input(slices, sampled, plan, steps=step.steps, targets=targets)

    def _shape(self, slices: SequenceOf[SequenceSlice], steps: int = 1) -> BatchShape:
        return self.runner.buckets.shape(slices, steps=steps, edits=self._taps.selective)

    def _input(
        self,
        slices: SequenceOf[SequenceSlice],
        sampled: list[Sequence],
        plan: SamplingPlan,
        *,
        steps: int,
        targets: SequenceOf[int] = (),
    ) -> StepInput:
        """The slices with how to sample after them; scored rows, with their `targets`, lie behind the sampled ones."""
        shape = self._shape(slices, steps)
        rows, limits = shape.rows, None
        ends = [part.start + len(part.tokens) for part in slices if part.rows]
        if plan.repeats and not targets:
            lengths, cohort = np.array(ends, np.int32), self._cohort_of(sampled, plan, rows)
            sampling = cohort.sampling(lengths, self._history_of(cohort, int(lengths.max(initial=0)) + steps))
            limits = cohort.limits(lengths, steps) if steps > 1 else None
        else:
            self._cohort = None
            sampling = pack([s.sampling for s in sampled], plan, size=rows, lengths=ends, targets=targets)
        return StepInput(
            slices=slices,
            shape=shape,
            previous=self._previous,
            sampling=sampling,
            plan=plan,
            limits=limits,
            mask=partial(_mask, sampled, rows, self.runner.vocab_size) if plan.masked else None,
            steps=self._most_steps(plan) if steps > 1 else 1,
        )

    def _cohort_of(self, sampled: list[Sequence], plan: SamplingPlan, rows: int) -> Cohort:
        """The cohort of these sequences: that of the launch before where they are the same."""
        if self._cohort is None or not self._cohort.is_of(sampled, plan, rows):
            self._cohort = Cohort.of(sampled, plan, rows)
        return self._cohort

    def _history_of(self, cohort: Cohort, longest: int) -> Any:
        """The tokens of a cohort's sequences, of at most `longest` after the launch, where its plan looks at them.

        Those that the device has, or else what the host knows: all of them, `_can_follow` has seen to it.
        """
        kept = self._history
        if kept is not None and kept.cohort is cohort and kept.array.shape[1] >= longest:
            return kept.array
        return cohort.history(longest)

    def _can_follow(self, plan: SamplingPlan, steps: int) -> bool:
        """Whether a launch can be made of what is known while the one before still runs."""
        if not plan.history:
            return plan.repeats
        running = self.scheduler.running
        rows = self.runner.buckets.decode_rows(len(running))
        return plan.repeats and self._history is not None and self._history.serves(running, rows, steps)

    def _running_plan(self) -> SamplingPlan:
        """One plan for all that run, so that programs do not change with who is sampled in a step."""
        running = self.scheduler.running
        if running != self._plan[0]:
            self._plan = [*running], plan_for([s.params for s in running])
        return self._plan[1]

    def _most_steps(self, plan: SamplingPlan) -> int:
        return self.config.decode_steps if plan.repeats and self._taps == NO_TAPS else 1

    def _steps_now(self, plan: SamplingPlan) -> int:
        """Of the steps that a program may run, how many it is to run with what runs now."""
        return min(self._most_steps(plan), self.config.steps_of(len(self.scheduler.running)))

    def _ready(self, sequence: Sequence) -> bool:
        """Whether a sequence's newest token is known, or lies where the next launch can read it."""
        return not sequence.in_flight or sequence in self._rows

    def _collect(self) -> list[Sequence]:
        """Wait for the oldest launch; returns sequences that had nothing but scores to wait for, and have them."""
        launch = self._launched.popleft()
        if launch.output is None:
            return []
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation("wait"):
            arrays: Any = [None if array is None else np.asarray(array) for array in launch.output]
        output: Any = SampleOutput(*arrays)
        self.stats.waited += time.perf_counter() - start
        if launch.sampled and launch.step.steps == 1:
            self._ahead.append(_Tokens(launch.sampled, output.tokens.tolist(), output))
        elif launch.sampled:
            for step, ids in enumerate(output.tokens[: launch.step.steps].tolist()):
                part = None if output.logprobs is None else jax.tree.map(lambda array, at=step: array[at], output)
                self._ahead.append(_Tokens(launch.sampled, ids, part))
        return self._take_scores(launch, output)

    def _take_scores(self, launch: _Launch, output: Any) -> list[Sequence]:
        at, done = len(launch.sampled), []
        for part in launch.step.parts:
            sequence, end = part.sequence, at + len(part.scored)
            if part.scored and not sequence.finished:
                top = sequence.params.prompt_logprobs or 0
                scores = PositionLogprobs(
                    token=output.logprobs[at:end],
                    rank=output.rank[at:end],
                    top_ids=output.top_ids[at:end, :top],
                    top=output.top_logprobs[at:end, :top],
                )
                sequence.scores.append(scores)
                if not sequence.max_tokens and part.scored.stop == sequence.prompt_length - 1:
                    self._end(sequence)
                    done.append(sequence)
            at = end
        return done

    def _distribute(self, tokens: _Tokens) -> list[Sequence]:
        """Hand each sequence that still goes on its token."""
        took = []
        for row, (sequence, token) in enumerate(zip(tokens.sequences, tokens.ids, strict=False)):
            if sequence.finished:
                continue
            wanted = sequence.params.logprobs
            logprobs = None if wanted is None else _token_logprobs(tokens.output, row, wanted)
            sequence.in_flight -= 1
            sequence.append(token, logprobs)
            took.append(sequence)
            if sequence.finished:
                self._end(sequence)
        self.stats.generated_tokens += len(took)
        if not self.has_work:
            self._ahead.clear()
            self._launched.clear()
        return took

    def _end(self, sequence: Sequence) -> None:
        if not sequence.finished:
            sequence.finish("length")
        self.scheduler.publish(sequence)
        self.scheduler.remove(sequence)
        self.stats.finished += 1

    def _fail(self) -> None:
        """The device's state is unknown: end everything, and forget what the cache held."""
        self.abort([*self.scheduler.running, *self.scheduler.waiting])
        self.scheduler.reset()
        self._previous, self._history = np.zeros(self.config.max_num_seqs, np.int32), None
        self.runner.restore_cache()

    def _count(self, step: ScheduledStep[Sequence]) -> None:
        stats = self.stats
        stats.steps += 1
        stats.preemptions += len(step.preempted)
        stats.computed_tokens += sum(part.count for part in step.parts) * step.steps
        stats.compilations = self.runner.compilations
        for part in step.parts:
            if part.start < part.sequence.prompt_length and part.start == part.sequence.cached_tokens:
                stats.prompt_tokens += part.sequence.prompt_length
                stats.cached_tokens += part.start
        if self._trace is not None:
            self._trace.write(step, waiting=len(self.scheduler.waiting), free=self.blocks.free)


def _mask(sampled: SequenceOf[Sequence], rows: int, vocab_size: int) -> np.ndarray:
    """`int32[rows, ceil(vocab / 32)]`: the tokens that each sequence's grammar allows next, all where it has none."""
    mask = np.full((rows, -(-vocab_size // 32)), -1, np.int32)
    for row, sequence in zip(mask, sampled, strict=False):
        if sequence.grammar is not None:
            sequence.grammar.fill(row)
    return mask


def _token_logprobs(output: SampleOutput, row: int, wanted: int) -> TokenLogprobs:
    arrays: Any = output
    return TokenLogprobs(
        token=float(arrays.logprobs[row]),
        rank=int(arrays.rank[row]),
        top_ids=tuple(arrays.top_ids[row, :wanted].tolist()),
        top=tuple(arrays.top_logprobs[row, :wanted].tolist()),
    )
