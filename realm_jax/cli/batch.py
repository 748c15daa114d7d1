"""Owns `realm batch`: a file of requests, answered in another."""

import contextlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm_jax.cli import options
from realm_jax.cli.console import print_json
from realm_jax.cli.errors import CommandError
from realm_jax.cli.loading import load
from realm_jax.cli.model_file import locate_model
from realm_jax.sources import CATALOGUE, DEFAULT_MODEL

if TYPE_CHECKING:
    from realm_jax.jobs import JobSummary

Input = Annotated[Path, typer.Argument(metavar="IN", dir_okay=False, exists=True, help="Requests, one a line.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", dir_okay=False, help="Answers, one a line; only grows.")]
Ray = Annotated[
    bool,
    typer.Option("--ray", help="Compute on a Ray cluster; needs the extra: pip install 'realm-jax[ray]'."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        metavar="ADDRESS",
        help="A running cluster, host:port or auto; default: one of this machine alone, as long as the job.",
        show_default=False,
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes with a model each; default: one for each GPU, or each machine of a cluster without GPUs.",
        show_default=False,
    ),
]
RayGpus = Annotated[
    int | None,
    typer.Option(min=0, max=1, help="GPUs of each worker; default: 1 where the cluster has any.", show_default=False),
]


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
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
    ray: Ray = False,
    ray_address: RayAddress = None,
    ray_workers: RayWorkers = None,
    ray_gpus: RayGpus = None,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    Each line is an object with custom_id, url (/v1/chat/completions or /v1/completions) and body. Killed at any
    moment and run again, the command goes on where it was: every line is answered once. Lines that are no requests
    are answered with an error, and a summary goes to stderr.

    With --ray workers on a cluster share the lines, also when some of them die; IN and OUT stay on this machine.
    Every machine loads MODEL by itself: a file must be at the same path on all of them, a name is fetched by each.
    --threads is then each worker's; give --max-model-len where machines differ in memory.
    """
    settings = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len, "dtype": dtype}
    settings |= {"kv_cache_dtype": kv_cache_dtype, "implementation": implementation}
    files: Any = {"source": source, "target": target, "seed": seed}
    files["progress"] = _show if sys.stderr.isatty() else lambda _: None
    if ray:
        cluster = {"address": ray_address, "workers": ray_workers, "gpus": ray_gpus, "cpus": threads}
        settings |= {"cache_dir": None if cache_dir is None else str(cache_dir), "offline": offline}
        summary = _on_ray(model, cluster, settings, files)
    elif ray_workers is not None or ray_gpus is not None:
        raise CommandError("--ray-workers and --ray-gpus need --ray; add it, or leave them out")
    else:
        llm, _ = load(model, threads=threads, cache_dir=cache_dir, offline=offline, **settings)
        from realm_jax.jobs import run_batch

        summary = run_batch(llm, **files)
    counts = {"answered": summary.answered, "failed": summary.failed, "before": summary.before}
    if json:
        print_json(counts)
    else:
        print(_text(summary), file=sys.stderr)


def _on_ray(
    model: str, cluster: Mapping[str, Any], settings: Mapping[str, Any], files: Mapping[str, Any]
) -> "JobSummary":
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise CommandError("--ray needs Ray Data; install it on every machine with pip install 'realm-jax[ray]'")
    path: Path | None = Path(model).expanduser()
    if cluster["address"] is None:  # all workers are here, and must not each fetch what is missing
        cache_dir = None if settings["cache_dir"] is None else Path(settings["cache_dir"])
        path = locate_model(model, cache_dir=cache_dir, offline=settings["offline"])
    elif model in CATALOGUE or not path.is_file():
        path = None
    name = model if path is None else str(path.absolute())  # workers start in a folder of their own
    from realm_jax.jobs.ray_batch import run_ray_batch
    from realm_jax.jobs.ray_plan import RayConfig

    with contextlib.redirect_stdout(sys.stderr):  # Ray tells of workers that died, and stdout is for the summary
        return run_ray_batch(name, cluster=RayConfig(**cluster), settings=settings, **files)


def _show(summary: "JobSummary") -> None:
    print(f"\r{_text(summary)}", end="\r", file=sys.stderr, flush=True)


def _text(summary: "JobSummary") -> str:
    return f"{summary.answered} answered, {summary.failed} failed, {summary.before} had been answered before"
