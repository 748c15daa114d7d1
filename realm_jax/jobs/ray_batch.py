"""Batch on a Ray cluster: workers on any machine answer blocks of lines, one driver writes what they answer."""

# pyright: reportMissingImports=false
from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
import ray.exceptions

from realm_jax.jobs.block_worker import ANSWERS, FAULT, LINES, BlockWorker, block_of
from realm_jax.jobs.ledger import JobSummary, Ledger
from realm_jax.jobs.ray_plan import RayConfig, blocks, require_reachable, shares

_LARGEST = 16  # lines of a block for every sequence that runs: the last ones of a block run in a batch that is not full
_TRIES_OF_A_BLOCK = 4  # a line that ends its worker's process ends the job after so many
_RESTARTS = 100  # of a worker; machines may come and go, but a model that ends its process is not loaded for ever


def run_ray_batch(
    model: str,
    source: Path,
    target: Path,
    *,
    cluster: RayConfig,
    settings: Mapping[str, Any],
    seed: int = 0,
    progress: Callable[[JobSummary], object] = lambda _: None,
) -> JobSummary:
    """`run_batch` with models on a cluster: the same files, the same answers, interrupted and continued alike.

    Each worker loads `model` by this name on its own machine, with `settings` for `LLM`, and computes a block of lines
    in one continuous batch. Where a worker dies, Ray starts it again and it answers its blocks once more; the driver
    writes the first answer of each line. Answers come block by block, in the order in which blocks are ready;
    `progress` is told after each. The requests wait in Ray's object store, which spills to disk.

    What a machine has no memory for it refuses, so give `max_model_len` where machines differ.

    Raises:
        RuntimeError: a worker cannot load the model, a block ended its worker's process time and again, or an error
            that is no answer. What was answered before is in `target`; run again to go on.
        ConnectionError: there is no cluster at the address.
    """
    with Ledger(source, target) as ledger:
        lines = ledger.unanswered()
        first = next(lines, None)
        progress(ledger.summary)
        if first is None:
            return ledger.summary
        with _connected(cluster.address), _plain_errors():
            gpus, workers = shares(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            sequences = settings.get("max_num_seqs", 16)
            cut = blocks(chain([first], lines), workers=workers, least=sequences, most=_LARGEST * sequences)
            tables: Any = [ray.put(pyarrow.table({LINES: [block_of(block)]})) for block in cut]
            options = _worker_options(cluster.cpus, gpus, min(workers, len(tables)))
            options |= {"fn_constructor_args": (model, seed, dict(settings))}
            answers = _mapped(ray.data.from_arrow_refs(tables), options)
            for batch in answers.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                for block in batch[ANSWERS]:
                    _write(ledger, json.loads(block))
                progress(ledger.summary)
        if ledger.waiting:
            raise RuntimeError(f"every request must come back answered, {ledger.waiting} did not; run it again")
        return ledger.summary


def _write(ledger: Ledger, answers: Iterable[Mapping[str, Any]]) -> None:
    for answer in answers:
        if FAULT in answer:
            raise RuntimeError(answer[FAULT])
        ledger.take(answer)


def _mapped(blocks_of_lines: ray.data.Dataset, options: Mapping[str, Any]) -> ray.data.Dataset:
    with warnings.catch_warnings():
        # Attempts cannot be bounded in another way yet; the extra's versions are those that take the arguments.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        return blocks_of_lines.map_batches(BlockWorker, batch_size=1, batch_format="numpy", **options)


def _worker_options(cpus: int | None, gpus: int, workers: int) -> dict[str, Any]:
    """What Ray is to know of the workers."""
    # The pool of XLA's CPU backend has as many threads as this variable says, and else as the process has CPUs.
    threads = {} if cpus is None else {"runtime_env": {"env_vars": {"NPROC": str(cpus)}}}
    return {
        # One block runs and one waits, so that no worker idles between two.
        "compute": ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        "num_cpus": cpus or 1,
        "num_gpus": gpus,
        "max_restarts": _RESTARTS,
        "max_task_retries": _TRIES_OF_A_BLOCK - 1,
        **threads,
    }


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be the driver of a cluster, without its reports to the terminal and, where it is ours, to its makers."""
    own: dict[str, Any] = {}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray has no other switch for either
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False}
    else:
        require_reachable(address)
    with _no_stderr():  # where Ray's core says that it will be quiet; what goes wrong here is raised
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = None  # what a block is answered stays in one piece
        context.max_consecutive_actor_init_deaths = 0  # what a worker cannot load once, it cannot load again
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing reach the process's stderr, from whatever language."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Say in a sentence what Ray says in a page, whose last line is the reason."""
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise RuntimeError(
            f"Ray gave up: {reason}; what was answered is kept, run the command again to go on"
        ) from error
