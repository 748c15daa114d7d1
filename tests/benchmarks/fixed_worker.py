"""A worker that computes nothing: it gives one speed for every case, and refuses prefills of 13 tokens."""

import sys
from collections.abc import Sequence

from benchmarks.worker import answering_stream, serve
from realm_jax.cli.bench_measure import Case


def speeds(case: Case, count: int) -> Sequence[float]:
    print("a library that talks on stdout")
    if case.tokens == 13:
        raise ValueError("13 tokens cannot be computed")
    if case.tokens == 99:
        sys.exit(3)
    return [float(case.tokens)] * count


if __name__ == "__main__":
    serve(answering_stream(), {"version": "0", "arguments": sys.argv[1:]}, speeds)
