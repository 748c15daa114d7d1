"""The worker that runs llama.cpp through llama-cpp-python, by llama-bench's method, with flash attention."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports] - installed by `make bench` alone
import numpy as np

from benchmarks.worker import answering_stream, serve
from realm_jax.cli.bench_measure import Case
from realm_jax.cli.threads import available_cpus

_BATCH = 512  # tokens of a call
_CONTEXT_STEP = 256  # contexts are multiples of this
_LOG_ERROR = 4  # ggml_log_level


class Context:
    """A llama.cpp context for `sequences` sequences of `length` positions, and what a step on it needs."""

    def __init__(self, model: Any, *, sequences: int, length: int, threads: int) -> None:
        self.sequences = sequences
        self.batch_size = _BATCH
        self._rng = random.Random(0)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * -(-length // _CONTEXT_STEP) * _CONTEXT_STEP
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.swa_full = False  # as llama-bench: layers with a window keep that window alone
        self._context = llama_cpp.llama_init_from_model(model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp could not make a context of {params.n_ctx} positions; lower the batch")
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def clear(self) -> None:
        """Forget every position."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def clear_sequence(self, sequence: int, start: int = 0) -> None:
        """Forget every position of one sequence from `start` on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), sequence, start, -1)

    def prefill(self, start: int, count: int) -> None:
        """Compute positions start to start + count of each sequence, 512 tokens a call, one sequence after another."""
        for sequence in range(self.sequences):
            for at in range(start, start + count, _BATCH):
                stop = min(at + _BATCH, start + count)
                self.compute([(sequence, p, p == start + count - 1) for p in range(at, stop)])

    def decode(self, start: int, count: int) -> None:
        """Compute the same positions one by one, all sequences in each call."""
        for position in range(start, start + count):
            self.compute([(sequence, position, True) for sequence in range(self.sequences)])

    def free(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def compute(self, rows: Sequence[tuple[int, int, bool]], tokens: Sequence[int] | None = None) -> None:
        """Run tokens, random ones unless given, at (sequence, position, whether logits are wanted), and wait."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position, wanted) in enumerate(rows):
            batch.token[i] = self._rng.randrange(self._vocabulary) if tokens is None else tokens[i]
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode must return 0, got {code}")
        llama_cpp.llama_synchronize(self._context)

    def logits(self, row: int) -> np.ndarray:
        """`float32[vocab]`: those of a row of the last call that wanted them, until the next call."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), (self._vocabulary,))


@llama_cpp.llama_log_callback
def _show_errors(level: int, text: bytes, _: Any) -> None:
    """Let through what llama.cpp logs as an error; the rest, pages of it, is dropped."""
    if level == _LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


@contextmanager
def _context(model: Any, case: Case, threads: int) -> Iterator[Context]:
    context = Context(model, sequences=case.batch, length=case.length, threads=threads)
    try:
        yield context
    finally:
        context.free()


def _seconds(context: Context, case: Case) -> float:
    context.clear()
    context.prefill(0, case.depth)
    work = context.prefill if case.kind == "pp" else context.decode
    start = time.perf_counter()
    work(case.depth, case.tokens)
    return time.perf_counter() - start


def load(path: str) -> Any:
    """The model of a file, on the CPU; SystemExit where llama.cpp refuses it."""
    llama_cpp.llama_log_set(_show_errors, None)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if model is None:
        raise SystemExit(f"llama.cpp could not load {path}")
    return model


def main() -> None:
    """Load the model and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    path = parser.parse_args().model
    answers = answering_stream()
    threads = available_cpus()
    model = load(path)

    def speeds(case: Case, count: int) -> list[float]:
        with _context(model, case, threads) as context:
            _seconds(context, case)
            return [case.batch * case.tokens / _seconds(context, case) for _ in range(count)]

    facts = {
        "version": llama_cpp.__version__,
        "threads": threads,
        "kv_cache": "float16",
        "system": llama_cpp.llama_print_system_info().decode().strip(),
    }
    serve(answers, facts, speeds)


if __name__ == "__main__":
    main()
