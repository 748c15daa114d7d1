"""The worker that runs this library, timed by the code of `realm bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.worker import answering_stream, serve
from realm_jax.cli.bench_measure import Case, measure
from realm_jax.cli.threads import available_cpus
from realm_jax.cli.versions import version_of


def main() -> None:
    """Load the model and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--max-length", type=int, required=True, help="longest sequence of any case")
    parser.add_argument("--max-batch", type=int, required=True, help="most sequences of any case")
    parser.add_argument("--implementation", required=True)
    options = parser.parse_args()
    answers = answering_stream()

    from realm_jax import LLM

    llm = LLM(
        options.model,
        max_model_len=options.max_length,
        max_num_seqs=options.max_batch,
        implementation=options.implementation,
        quiet=True,
    )

    def speeds(case: Case, count: int) -> Sequence[float]:
        return measure(llm, case, count).samples

    facts = {
        "version": version_of("realm-jax"),
        "implementation": llm.implementation,
        "threads": available_cpus(),
        "activations": llm.dtype.name,
        "kv_cache": llm.kv_cache_dtype,
    }
    serve(answers, facts, speeds)


if __name__ == "__main__":
    main()
