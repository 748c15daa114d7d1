"""Owns `realm batch`: a file of requests, answered in another."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realm_jax.cli import options
from realm_jax.cli.console import print_json
from realm_jax.cli.loading import load
from realm_jax.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from realm_jax.jobs import JobSummary

Input = Annotated[Path, typer.Argument(metavar="IN", dir_okay=False, exists=True, help="Requests, one a line.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", dir_okay=False, help="Answers, one a line; only grows.")]


def batch(
    source: Input,
    target: Output,
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=options.MODEL_HELP)] = DEFAULT_MODEL,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that are computed together.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="For requests that draw and have no seed of their own.")] = 0,
    json: options.Json = False,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = "auto",
    implementation: options.Implementation = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    Each line is an object with custom_id, url (/v1/chat/completions or /v1/completions) and body. Killed at any
    moment and run again, the command goes on where it was: every line is answered once. Lines that are no requests
    are answered with an error, and a summary goes to stderr.
    """
    settings = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len, "dtype": dtype}
    settings["implementation"] = implementation
    llm, _ = load(model, threads=threads, cache_dir=cache_dir, offline=offline, **settings)
    from realm_jax.jobs import run_batch

    summary = run_batch(llm, source, target, seed=seed, progress=_show if sys.stderr.isatty() else lambda _: None)
    counts = {"answered": summary.answered, "failed": summary.failed, "before": summary.before}
    if json:
        print_json(counts)
    else:
        print(_text(summary), file=sys.stderr)


def _show(summary: "JobSummary") -> None:
    print(f"\r{_text(summary)}", end="\r", file=sys.stderr, flush=True)


def _text(summary: "JobSummary") -> str:
    return f"{summary.answered} answered, {summary.failed} failed, {summary.before} had been answered before"
