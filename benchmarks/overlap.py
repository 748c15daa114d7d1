"""What the host does on a real decode step, and whether the device works meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.null_step import DecodingModel
from benchmarks.samples import Samples
from realm_jax.ops import fastest_implementation

_WARM_UP = 4  # launches
_MOST_STEPS = 16  # of a launch


def measure(
    path: Path, *, batch: int, decode_steps: int | None = None, steps: int = 200, repetition_penalty: float = 1.0
) -> dict[str, Any]:
    """Microseconds of `steps` decode steps, launched ahead, and what of each the host waited for the device.

    Steps of one launch are handed out one by one: a value is the mean of as many steps as a launch has. Where the host
    waits, the next launch was sent before the last one ended: all of its own work was hidden, as far as it had a CPU
    that no kernel needed. `host_cpu` is what of that work the host's thread computed, without the time in which kernels
    had its CPU.
    """
    settings: dict[str, Any] = {"implementation": fastest_implementation(), "decode_steps": decode_steps}
    settings["sampling"] = {"repetition_penalty": repetition_penalty}
    needed = steps + (decode_steps or _MOST_STEPS) * (_WARM_UP + 3)
    engine = DecodingModel(path, batch=batch, steps=needed, ahead=True, **settings).engine
    row = engine.config.steps_of(batch)
    whole, waiting, computing = [], [], []
    for number in range(_WARM_UP + -(-steps // row)):
        before, start, cpu = engine.stats.waited, time.perf_counter(), time.thread_time()
        for _ in range(row):
            engine.step()
        if number >= _WARM_UP:
            computing.append(1e6 * (time.thread_time() - cpu) / row)
            whole.append(1e6 * (time.perf_counter() - start) / row)
            waiting.append(1e6 * (engine.stats.waited - before) / row)
    host = [step - wait for step, wait in zip(whole, waiting, strict=True)]
    # An output that is there already is read in less time than a step's host work, by far.
    waited = sum(wait > own / 10 for wait, own in zip(waiting, host, strict=True))
    samples = {"step": whole, "waiting": waiting, "host": host, "host_cpu": computing}
    return {
        "model": path.name,
        "implementation": settings["implementation"],
        "batch": batch,
        "decode_steps": row,
        "repetition_penalty": repetition_penalty,
        **{name: Samples(unit="us", values=tuple(values)) for name, values in samples.items()},
        "hidden_steps": waited / len(host),
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds of a decode step as Markdown: median (p10-p90)."""
    columns = ("model", "implementation", "batch", "steps a launch", "penalty")
    columns += ("step us", "waiting us", "host work us", "of it on a CPU us", "steps hidden %")
    fields = ("model", "implementation", "batch", "decode_steps", "repetition_penalty")
    fields += ("step", "waiting", "host", "host_cpu")
    rows = [(*(result[name] for name in fields), report.Fixed(100 * result["hidden_steps"])) for result in results]
    return report.table(columns, rows)


def main() -> None:
    """Print the steps of each model."""
    parser = report.parser("The host's work on decode steps that are launched ahead, and how much of it is hidden.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="sequences that decode together")
    parser.add_argument("--decode-steps", type=int, help="steps of a launch (default: as many as the library takes)")
    parser.add_argument("--steps", type=int, default=200, help="timed steps")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="of all sequences (default: none)")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("decode_steps", "steps", "repetition_penalty")}
    report.run(options, lambda path: [measure(path, batch=batch, **settings) for batch in options.batch], tables)


if __name__ == "__main__":
    main()
