"""Many requests of several lengths at once, beside llama.cpp with continuous batching, in turns."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.environment import ROOT
from benchmarks.speed import check_peer
from benchmarks.workload import Workload

_WORKLOADS = {"mixed": Workload.mixed(), "shared prefix": Workload.with_prefix()}


def measure(path: Path, *, slots: int, peer_slots: int, rounds: int, peer: str | None) -> list[dict[str, Any]]:
    """Seconds of each workload by each program, a process for each run, `rounds` times in turns.

    Without prefix caching, and with it where prompts begin alike. `slots` are the sequences that are computed together.
    """
    results = []
    for name, workload in _WORKLOADS.items():
        words = [str(path), "--workload", json.dumps(dataclasses.asdict(workload))]
        ours = ["-m", "benchmarks.serving_worker", *words, "--slots", str(slots)]
        programs = {"realm": [sys.executable, *ours]} if workload.shared else {}
        programs["realm, nothing cached"] = [sys.executable, *ours, "--no-prefix-caching"]
        if peer is not None and not workload.shared:
            programs["llama.cpp"] = [peer, "-m", "benchmarks.serving_peer", *words, "--slots", str(peer_slots)]
        runs: dict[str, list[float]] = {program: [] for program in programs}
        for _ in range(rounds):
            for program, command in programs.items():
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                runs[program].append(json.loads(done.stdout)["seconds"])
        about = {"model": path.name, "workload": name, "requests": len(workload.prompts), "tokens": workload.tokens}
        results += [{**about, "program": program, "seconds": seconds} for program, seconds in runs.items()]
    return results


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Median seconds and tokens a second of prompts and outputs together, as Markdown."""
    header = ("model", "workload", "requests", "tokens", "program", "seconds", "tokens/s")
    rows = []
    for result in results:
        seconds = statistics.median(result["seconds"])
        spread = f"{seconds:.2f} ({min(result['seconds']):.2f}-{max(result['seconds']):.2f})"
        rows.append((*(result[name] for name in header[:5]), spread, report.Fixed(result["tokens"] / seconds)))
    return report.table(header, rows)


def main() -> None:
    """Print the time of each workload, beside the peer unless that is left out."""
    parser = report.peer_parser("Many requests of several lengths at once, in turns with llama.cpp.")
    parser.add_argument("--slots", type=int, default=32, help="sequences that are computed together")
    parser.add_argument("--peer-slots", type=int, default=16, help="the same, of llama.cpp")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program")
    options = parser.parse_args()
    check_peer(options.peer)
    settings = {name: getattr(options, name) for name in ("slots", "peer_slots", "rounds", "peer")}
    report.run(options, lambda path: measure(path, **settings), tables)


if __name__ == "__main__":
    main()
