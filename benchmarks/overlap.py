"""How much of the host's work on a decode step is hidden: real steps one by one, and launched ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.null_step import DecodingModel, in_turns
from realm_jax.ops import fastest_implementation

_TURNS = 5
_SPARE = 80  # steps before the first turn and between turns

DEVICE, ALONE, AHEAD = "program", "engine, one at a time", "engine, launched ahead"


def measure(path: Path, *, batch: int, steps: int = 100) -> dict[str, Any]:
    """Microseconds of `steps` decode steps: the compiled program alone, and whole steps of two engines, in turns."""
    implementation = fastest_implementation()
    settings: dict[str, Any] = {"batch": batch, "steps": 2 * steps + _SPARE, "implementation": implementation}
    alone, ahead = (DecodingModel(path, **settings, ahead=launched) for launched in (False, True))
    levels = {DEVICE: alone.levels()["program"], ALONE: alone.engine.step, AHEAD: ahead.engine.step}
    steps_us = in_turns(levels, steps // _TURNS)
    host = steps_us[ALONE].median - steps_us[DEVICE].median
    left = steps_us[AHEAD].median - steps_us[DEVICE].median
    return {
        "model": path.name,
        "implementation": implementation,
        "batch": batch,
        "steps": steps_us,
        "host_us": host,
        "hidden_share": 1 - left / host,
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Microseconds a step as Markdown: median (p10-p90), and what of the host's work shows with launches ahead."""
    columns = ("model", "implementation", "batch", DEVICE, ALONE, AHEAD, "host us", "hidden %")
    rows = [
        (
            *(result[name] for name in columns[:3]),
            *(result["steps"][level] for level in (DEVICE, ALONE, AHEAD)),
            report.Fixed(result["host_us"]),
            report.Fixed(100 * result["hidden_share"]),
        )
        for result in results
    ]
    return report.table(columns, rows)


def main() -> None:
    """Print the steps of each model."""
    parser = report.parser("Decode steps one by one and launched ahead, beside the device's own work.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="sequences that decode together")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each kind")
    options = parser.parse_args()
    report.run(
        options, lambda path: [measure(path, batch=batch, steps=options.steps) for batch in options.batch], tables
    )


if __name__ == "__main__":
    main()
