"""Owns `realm bench`: prefill and decode speed."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm_jax.cli import options
from realm_jax.cli.bench_measure import Case, Result, measure
from realm_jax.cli.bench_profile import Budget, profile_decode
from realm_jax.cli.console import print_json, print_table, status
from realm_jax.cli.loading import load
from realm_jax.cli.threads import available_cpus, limit_threads
from realm_jax.cli.versions import version_of
from realm_jax.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from realm_jax import LLM

_LIST = "several with commas"


def bench(
    model: options.DefaultModel = DEFAULT_MODEL,
    prefill: Annotated[str, typer.Option("--prefill", "-p", help=f"Tokens to prefill, {_LIST}; 0 for none.")] = "512",
    decode: Annotated[str, typer.Option("--decode", "-n", help=f"Tokens to decode, {_LIST}; 0 for none.")] = "64",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Timed runs of each test.")] = 3,
    depth: Annotated[str, typer.Option("--depth", "-d", help=f"Tokens in the context before, {_LIST}.")] = "0",
    batch: Annotated[str, typer.Option("--batch", "-b", help=f"Sequences at a time, {_LIST}.")] = "1",
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a decode step goes.")] = False,
    json: options.Json = False,
    threads: options.Threads = None,
    dtype: options.Dtype = "auto",
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    max_weight_memory: options.MaxWeightMemory = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Measure prefill and decode speed.

    As llama-bench does: random tokens, a warm-up run that is not counted, then -r runs; pp512 is the prefill of 512
    tokens, tg64 the decoding of 64, one by one. Prints tokens a second of all sequences together: median and spread.
    --profile adds the microseconds of a decode step, kernel by kernel.
    """
    cases = _cases(prefill, decode, depth, batch)
    limit_threads(threads)
    llm, _ = load(
        model,
        threads=None,
        cache_dir=cache_dir,
        offline=offline,
        max_model_len=max(case.length for case in cases),
        max_num_seqs=max(case.batch for case in cases),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        implementation=implementation,
        max_weight_memory=max_weight_memory,
        kv_cache_memory=_half_of_memory(),
    )
    results = []
    for case in cases:
        with status(f"Measuring {case.test} at depth {case.depth}, batch {case.batch} ..."):
            results.append(measure(llm, case, repetitions))
    budgets = [profile_decode(llm, case) for case in cases if profile and case.kind == "tg"]
    if json:
        print_json([_as_json(model, result) for result in results] + [_budget_as_json(model, b) for b in budgets])
        return
    _print_results(llm, model, results)
    for budget in budgets:
        print(f"\na step of {budget.case.test} at depth {budget.case.depth}, batch {budget.case.batch}:\n")
        print_table(("part", "calls", "us", "share"), budget.rows)


def _numbers(text: str, name: str, lowest: int) -> list[int]:
    """Read an option such as 1,4,16."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [lowest - 1]
    if min(numbers) < lowest:
        raise typer.BadParameter(f"{name} must be numbers of at least {lowest} with commas between, got {text!r}")
    return numbers


def _cases(prefill: str, decode: str, depth: str, batch: str) -> list[Case]:
    """Return every combination of the options; 0 tokens make no test."""
    tests = [("pp", tokens) for tokens in _numbers(prefill, "--prefill", 0)]
    tests += [("tg", tokens) for tokens in _numbers(decode, "--decode", 0)]
    around = itertools.product(_numbers(batch, "--batch", 1), _numbers(depth, "--depth", 0))
    cases = [
        Case(kind=kind, tokens=tokens, depth=at, batch=together)
        for (together, at), (kind, tokens) in itertools.product(list(around), tests)
        if tokens
    ]
    if not cases:
        raise typer.BadParameter("--prefill and --decode must not both be 0")
    return cases


def _half_of_memory() -> int | None:
    """Bytes that the KV caches of a large batch may take, None where the system does not tell."""
    import jax

    from realm_jax.engine.memory import memory_at_hand

    found = memory_at_hand(jax.devices()[0])
    return None if found is None else found // 2


def _as_json(model: str, result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "model": model,
        "test": case.test,
        "depth": case.depth,
        "batch": case.batch,
        "tokens_per_second": result.median,
        "samples": result.samples,
    }


def _budget_as_json(model: str, budget: Budget) -> dict[str, Any]:
    case = budget.case
    parts = [dict(zip(("part", "calls", "microseconds", "share"), row, strict=True)) for row in budget.rows]
    shape = {"model": model, "profile": case.test, "depth": case.depth, "batch": case.batch}
    return {**shape, "microseconds": budget.step, "parts": parts}


def _print_results(llm: "LLM", model: str, results: Sequence[Result]) -> None:
    import jax

    from realm_jax.host_cpu import host_cpu

    device = jax.devices()[0]
    kind = f"{host_cpu().name}, {available_cpus()} CPUs" if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version_of(name) or 'not installed'}" for name in ("realm-jax", "jax", "jaxlib"))
    print(f"{model} on {kind}; activations {llm.dtype}; {versions}; one warm-up run, {len(results[0].samples)} timed\n")
    rows = [(r.case.test, r.case.depth, r.case.batch, r.median, r.spread) for r in results]
    print_table(("test", "depth", "batch", "tokens/s", "spread"), rows)
