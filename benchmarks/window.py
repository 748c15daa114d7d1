"""Models larger than memory: decode with all weights resident, and with windows of a part of them, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.samples import Samples
from realm_jax import LLM
from realm_jax.cli.bench_measure import Case, measure
from realm_jax.engine.streaming import StreamingRunner

SHARES = (1.0, 0.5, 0.3)
_DEPTH = 16


def measure_windows(
    path: Path, *, implementation: str, shares: Sequence[float] = SHARES, tokens: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Tokens a second of `tokens` steps of one sequence, for each memory for weights; `rounds` times in turns.

    `shares` are of the bytes that the weights take in memory. The file is in the system's cache after the first step
    where that has room for it: then what streams is read from there, and packed.
    """
    case = Case(kind="tg", tokens=tokens, depth=_DEPTH, batch=1)
    common: dict[str, Any] = {"implementation": implementation, "max_model_len": case.length, "max_num_seqs": 1}
    resident = LLM(path, **common, quiet=True)
    weights = sum(leaf.nbytes for leaf in resident.runner.leaves)
    models: dict[float | None, LLM] = {None: resident}
    refused: dict[float, str] = {}
    for share in shares:
        try:
            models[share] = LLM(path, **common, quiet=True, max_weight_memory=int(share * weights))
        except ValueError as error:
            refused[share] = str(error)
    speeds: dict[float | None, list[float]] = {share: [] for share in models}
    for _ in range(rounds):
        for share, llm in models.items():
            speeds[share] += measure(llm, case, 1).samples
    return {
        "model": path.name,
        "implementation": implementation,
        "tokens": tokens,
        "weights_bytes": weights,
        "windows": [_window(share, llm, weights, speeds[share]) for share, llm in models.items()],
        "refused": refused,
    }


def _window(share: float | None, llm: LLM, weights: int, speeds: Sequence[float]) -> dict[str, Any]:
    runner = llm.runner
    streamed = runner.window.streamed_bytes if isinstance(runner, StreamingRunner) else 0
    samples = Samples(unit="tokens/s", values=tuple(speeds))
    return {
        "share": share,
        "streamed_bytes": streamed,
        "tokens_per_second": samples,
        "streamed_gb_per_second": samples.median * streamed / 1e9,
        "weights_gb_per_second": samples.median * weights / 1e9,
    }


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second and the bytes of weights that go with them, as Markdown: median (p10-p90)."""
    columns = ("model", "implementation", "window", "read anew a step, MB", "tokens/s", "ms a token")
    columns += ("of that reading, GB/s", "of all weights, GB/s")
    rows = [
        (
            result["model"],
            result["implementation"],
            "all resident" if window["share"] is None else f"{window['share']:.0%}",
            report.Fixed(window["streamed_bytes"] / 1e6),
            window["tokens_per_second"],
            report.Fixed(1000 / window["tokens_per_second"].median),
            report.Fixed(window["streamed_gb_per_second"]),
            report.Fixed(window["weights_gb_per_second"]),
        )
        for result in results
        for window in result["windows"]
    ]
    lines = [f"{r['model']}, {share:.0%}: {why}" for r in results for share, why in r["refused"].items()]
    return "\n".join([report.table(columns, rows), *lines])


def main() -> None:
    """Print the speed of each model with each window."""
    parser = report.parser("Decode with weights in memory, and streamed through windows of a part of their size.")
    report.add_implementations(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="windows, of the weights' size")
    parser.add_argument("--tokens", type=int, default=16, help="steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("shares", "tokens", "rounds")}

    def windows(path: Path) -> list[Any]:
        names = options.implementations or report.usable_implementations()
        return [measure_windows(path, implementation=name, **settings) for name in names]

    report.run(options, windows, tables)


if __name__ == "__main__":
    main()
