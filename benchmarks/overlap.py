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

_WARM_UP = 10


def measure(path: Path, *, batch: int, steps: int = 200) -> dict[str, Any]:
    """Microseconds of `steps` decode steps, launched ahead, and what of each the host waited for the device.

    Where it waits, the next step has been launched before the last one ended: all of its own work was hidden.
    """
    implementation = fastest_implementation()
    settings: dict[str, Any] = {"batch": batch, "steps": steps + _WARM_UP + 8, "implementation": implementation}
    engine = DecodingModel(path, **settings, ahead=True).engine
    for _ in range(_WARM_UP):
        engine.step()
    whole, waiting = [], []
    for _ in range(steps):
        before, start = engine.stats.waited, time.perf_counter()
        engine.step()
        whole.append(1e6 * (time.perf_counter() - start))
        waiting.append(1e6 * (engine.stats.waited - before))
    host = [step - wait for step, wait in zip(whole, waiting, strict=True)]
    # An output that is there already is read in less time than a step's host work, by far.
    waited = sum(wait > own / 10 for wait, own in zip(waiting, host, strict=True))
    return {
        "model": path.name,
        "implementation": implementation,
        "batch": batch,
        "step": Samples(unit="us", values=tuple(whole)),
        "waiting": Samples(unit="us", values=tuple(waiting)),
        "host": Samples(unit="us", values=tuple(host)),
        "hidden_steps": waited / steps,
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds as Markdown: median (p10-p90)."""
    columns = ("model", "implementation", "batch", "step us", "waiting us", "host work us", "steps hidden %")
    rows = [
        (
            *(result[name] for name in ("model", "implementation", "batch", "step", "waiting", "host")),
            report.Fixed(100 * result["hidden_steps"]),
        )
        for result in results
    ]
    return report.table(columns, rows)


def main() -> None:
    """Print the steps of each model."""
    parser = report.parser("The host's work on decode steps that are launched ahead, and how much of it is hidden.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="sequences that decode together")
    parser.add_argument("--steps", type=int, default=200, help="timed steps")
    options = parser.parse_args()
    report.run(
        options, lambda path: [measure(path, batch=batch, steps=options.steps) for batch in options.batch], tables
    )


if __name__ == "__main__":
    main()
