"""What a decode step takes beside its kernels: the model's own leaves and buckets, with kernels that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.samples import Samples, timed
from realm_jax import LLM, SamplingParams
from realm_jax.cli.threads import available_cpus
from realm_jax.engine.batch import SequenceSlice, pack_batch
from realm_jax.engine.request import RequestFactory
from realm_jax.engine.runner import StepInput
from realm_jax.engine.sequence import Sequence as EngineSequence
from realm_jax.nn import NO_TAPS
from realm_jax.sampling import pack, plan_for

TARGET_US = 350.0
"""What a step of 30 layers may take, dispatch included, with warm caches."""

_ROUNDS = 5  # the levels take turns, so that a disturbance falls on all of them
_WARM_UP = 5  # steps before each turn
_PROMPT = 16
_LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_EVICTED = 4  # times the last-level cache is read to empty it

Step = Callable[[], object]


class DecodingModel:
    """A model in the middle of decoding `batch` sequences; with "null" its kernels do nothing.

    Each step waits for the one before unless they are to be launched `ahead`: the device would hide what is measured.
    `decode_steps`: steps of a launch, None for as many as the library takes by itself. `sampling`: SamplingParams that
    the sequences have in common, greedy ones unless they say otherwise.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch: int,
        steps: int,
        implementation: str = "null",
        ahead: bool = False,
        decode_steps: int | None = 1,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        """Load and compile; `steps` engine steps can be taken. The KV cache has the size that a user gets."""
        self.llm = LLM(path, implementation=implementation, max_num_seqs=batch, quiet=True)
        if _PROMPT + steps > self.llm.max_model_len:
            raise ValueError(f"{steps} steps do not fit into a context of {self.llm.max_model_len}; lower steps")
        self.runner = self.llm.runner
        changes = {"async_scheduling": ahead} | ({} if decode_steps is None else {"decode_steps": decode_steps})
        self.engine = self.llm.new_engine(**changes)
        self.sequences = self._sequences(batch, steps, sampling or {})
        for sequence in self.sequences:
            self.engine.add(sequence)
        while any(sequence.num_tokens < _PROMPT + 2 for sequence in self.sequences):
            self.engine.step()
        self.plan = plan_for([sequence.params for sequence in self.sequences])
        self.slices = [self._next_slice(sequence) for sequence in self.sequences]
        self.previous = np.zeros(batch, np.int32)
        self.key = self.runner.step_key(self.given(), NO_TAPS)

    def levels(self) -> Mapping[str, Step]:
        """Steps from the inside out: dispatch alone, the compiled step, with packing, with scheduling and text."""
        return {
            "leaves only": self._leaves_only(),
            "program": self._program(),
            "runner.step": self._runner_step,
            "engine.step": self.engine.step,
        }

    def parts(self) -> Mapping[str, Step]:
        """The pieces of work on the host that lie between the levels."""
        return {
            "pick the bucket": lambda: self.runner.buckets.shape(self.slices),
            "name the program": lambda: self.runner.step_key(self._given, NO_TAPS),
            "pack the batch": lambda: pack_batch(self.slices, self.key.shape, self.runner.block_size),
            "plan sampling": lambda: plan_for([sequence.params for sequence in self.sequences]),
            "pack sampling": self.given,
        }

    def given(self) -> StepInput:
        """What a step is given, its sampling arrays packed anew."""
        shape = self.runner.buckets.shape(self.slices)
        sampling = pack([sequence.sampling for sequence in self.sequences], self.plan, size=shape.rows)
        self._given = StepInput(
            slices=self.slices, shape=shape, previous=self.previous, sampling=sampling, plan=self.plan
        )
        return self._given

    def _next_slice(self, sequence: EngineSequence) -> SequenceSlice:
        table = sequence.table
        assert table is not None
        start = sequence.num_tokens - 1
        return SequenceSlice(
            tokens=sequence.token_ids[start:], start=start, block_tables=[list(b) for b in table.groups], rows=(0,)
        )

    def facts(self) -> dict[str, Any]:
        """Sizes of the step."""
        shape = self.key.shape
        bucket = {"tokens": shape.tokens, "sequences": shape.sequences, "pages": shape.pages, "rows": shape.rows}
        return {
            "layers": len(self.runner.cache),
            "leaves": len(self.runner.leaves) + len(self.runner.cache),
            "cache_bytes": sum(array.nbytes for array in jax.tree.leaves(self.runner.cache)),
            "bucket": bucket,
        }

    def _runner_step(self) -> None:
        output, _, _ = self.runner.step(self._given)
        assert output is not None
        np.asarray(output.tokens)

    def _program(self) -> Step:
        # The compiled program itself, beneath Runner.step; its arguments are packed once.
        program = self.runner._program(self.key, self.runner._sampling_step)
        buffer = pack_batch(self.slices, self.key.shape, self.runner.block_size)
        operands = (self.previous, self._given.sampling, None)

        def step() -> None:
            output, _, _, self.runner.cache = program(self.runner.leaves, self.runner.cache, buffer, operands)
            np.asarray(output.tokens)

        return step

    def _leaves_only(self) -> Step:
        def nothing(leaves: Any, cache: Any, token: jax.Array) -> tuple[jax.Array, Any]:
            return token + 1, cache

        token = np.zeros(len(self.slices), np.int32)
        arguments = (self.runner.leaves, self.runner.cache, token)
        program = jax.jit(nothing, donate_argnums=1, keep_unused=True).lower(*arguments).compile()

        def step() -> None:
            output, self.runner.cache = program(self.runner.leaves, self.runner.cache, token)
            np.asarray(output)

        return step

    def _sequences(self, batch: int, steps: int, sampling: Mapping[str, Any]) -> list[EngineSequence]:
        llm = self.llm
        factory = RequestFactory(
            llm.tokenizer, vocab_size=llm.config.vocab_size, max_model_len=llm.max_model_len, seed=0
        )
        # The logits are all zero: every token is token 0, which may be a special one and has to become text too.
        usual = {"temperature": 0, "max_tokens": steps, "ignore_eos": True, "skip_special_tokens": False}
        params = SamplingParams(**{**usual, **sampling})
        tokens = np.random.default_rng(0).integers(llm.config.vocab_size, size=(batch, _PROMPT)).tolist()
        return [factory.make({"prompt_token_ids": ids}, params).sequences[0] for ids in tokens]


def measure(path: Path, *, batch: int = 1, steps: int = 200) -> dict[str, Any]:
    """Microseconds of `steps` decode steps at each level, with warm caches and with cold ones."""
    per_round = max(1, steps // _ROUNDS)
    model = DecodingModel(path, batch=batch, steps=2 * _ROUNDS * (per_round + _WARM_UP) + 8)
    levels, parts = model.levels(), model.parts()
    evict = cache_evictor()
    return {
        "model": path.name,
        **model.facts(),
        "batch": batch,
        "warm_up": _WARM_UP,
        "target_us": TARGET_US,
        "warm": _in_turns(levels, per_round),
        "cold": _in_turns(levels, per_round, between=evict),
        "parts": _in_turns(parts, per_round),
    }


def cache_evictor() -> Step:
    """A function that reads through more memory than the processor's caches hold, on every CPU."""
    size = _LAST_CACHE.read_text().strip() if _LAST_CACHE.exists() else "32768K"
    filler = np.zeros(_EVICTED * int(size.removesuffix("K")) * 1024 // 8)
    cpus = available_cpus()
    pool = ThreadPoolExecutor(cpus)
    return lambda: list(pool.map(np.sum, [filler] * cpus))


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds of each level as Markdown: median (p10-p90)."""
    columns = ("model", "layers", "leaves", "batch", "step", "warm us", "cold us")
    rows = [
        (r["model"], r["layers"], r["leaves"], r["batch"], level, r["warm"][level], r["cold"][level])
        for r in results
        for level in r["warm"]
    ]
    parts = [(r["model"], r["batch"], name, us) for r in results for name, us in r["parts"].items()]
    return f"{report.table(columns, rows)}\n\n{report.table(('model', 'batch', 'work on the host', 'us'), parts)}"


def _in_turns(steps: Mapping[str, Step], count: int, between: Step | None = None) -> dict[str, Samples]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS):
        for name, step in steps.items():
            seconds[name] += timed(step, count, warm_up=_WARM_UP, between=between)
    return {name: Samples(unit="us", values=tuple(s * 1e6 for s in values)) for name, values in seconds.items()}


def main() -> None:
    """Print the null step of each model."""
    parser = report.parser("The time of a decode step beside its kernels.")
    parser.add_argument("--batch", type=int, default=1, help="sequences that decode together")
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each kind")
    options = parser.parse_args()
    report.run(options, lambda path: [measure(path, batch=options.batch, steps=options.steps)], tables)


if __name__ == "__main__":
    main()
