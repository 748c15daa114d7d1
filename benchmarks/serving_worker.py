"""Serves a workload on this library's engine, in the same manner as its peer, and prints the seconds it took."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time

from benchmarks.worker import answering_stream
from benchmarks.workload import Workload
from realm_jax import LLM, SamplingParams
from realm_jax.cli.versions import version_of
from realm_jax.engine import LLMEngine


def serve(engine: LLMEngine, workload: Workload, vocab_size: int, seed: int) -> float:
    """Seconds until every request has its output; prompts are random tokens but for what is shared."""
    draw = random.Random(seed)
    prefix = draw.choices(range(vocab_size), k=workload.shared)
    start = time.perf_counter()
    for i, (prompt, output) in enumerate(zip(workload.prompts, workload.outputs, strict=True)):
        ids = prefix + draw.choices(range(vocab_size), k=prompt - workload.shared)
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        engine.add_request(f"{seed}-{i}", {"prompt_token_ids": ids}, params)
    while engine.has_unfinished_requests():
        engine.step()
    return time.perf_counter() - start


def main() -> None:
    """Load the model, run the workload twice to warm up and once timed, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--workload", required=True, help="JSON of a Workload")
    parser.add_argument("--no-prefix-caching", action="store_true")
    options = parser.parse_args()
    answers = answering_stream()
    workload = Workload(**json.loads(options.workload))
    llm = LLM(options.model, max_model_len=workload.longest, max_num_seqs=options.slots, quiet=True)
    for run in range(3):
        engine = llm.llm_engine(prefix_caching=not options.no_prefix_caching)
        seconds = serve(engine, workload, llm.config.vocab_size, run)
    stats = dataclasses.asdict(engine.stats)
    json.dump({"seconds": seconds, "version": version_of("realm-jax"), "stats": stats}, answers)


if __name__ == "__main__":
    main()
