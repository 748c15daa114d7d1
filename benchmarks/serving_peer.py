"""Serves a workload on llama.cpp with continuous batching, as its server does, and prints the seconds it took."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports] - installed by `make bench` alone

from benchmarks.llama_cpp_worker import Context, load
from benchmarks.workload import Workload
from realm_jax.cli.threads import available_cpus


class Slot:
    """One of the sequences that are computed together: its prompt, its output, and how far it has come."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.position = self.prompt = self.end = 0

    @property
    def free(self) -> bool:
        """Whether the last request has ended."""
        return self.position >= self.end

    def take(self, prompt: int, output: int) -> None:
        """Begin a request; its last token is sampled and never computed."""
        self.position, self.prompt, self.end = 0, prompt, prompt + output - 1


def serve(context: Context, slots: list[Slot], waiting: deque[tuple[int, int]]) -> float:
    """Seconds until every request has its output: in each call a token of every sequence that decodes, then prompts."""
    context.clear()
    start = time.perf_counter()
    while waiting or not all(slot.free for slot in slots):
        for slot in slots:
            if slot.free and waiting:
                context.clear_sequence(slot.sequence)
                slot.take(*waiting.popleft())
        rows: list[tuple[int, int, bool]] = []
        for slot in sorted((s for s in slots if not s.free), key=lambda s: s.position < s.prompt):
            room = context.batch_size - len(rows)
            count = 1 if slot.position >= slot.prompt else min(room, slot.prompt - slot.position)
            last = slot.position + count - 1
            rows += [(slot.sequence, p, p == last >= slot.prompt - 1) for p in range(slot.position, last + 1)][:room]
            slot.position += min(count, room)
        context.compute(rows)
    return time.perf_counter() - start


def main() -> None:
    """Load the model, run the workload once to warm up and once timed, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--workload", required=True, help="JSON of a Workload")
    options = parser.parse_args()
    workload = Workload(**json.loads(options.workload))
    requests = list(zip(workload.prompts, workload.outputs, strict=True))
    model = load(options.model)
    context = Context(model, sequences=options.slots, length=workload.longest, threads=available_cpus())
    slots: list[Any] = [Slot(i) for i in range(options.slots)]
    serve(context, slots, deque(requests[:4]))
    seconds = serve(context, slots, deque(requests))
    json.dump({"seconds": seconds, "version": llama_cpp.__version__}, sys.stdout)


if __name__ == "__main__":
    main()
