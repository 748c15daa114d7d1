"""Owns `realm plan`: what a model takes on an accelerator that need not be here."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm_jax.cli import options
from realm_jax.cli.console import human_bytes, print_json, status
from realm_jax.cli.errors import CommandError
from realm_jax.cli.model_file import located_header
from realm_jax.plan.devices import TARGETS, target_named

if TYPE_CHECKING:
    from pathlib import Path

    from realm_jax.plan.compiling import Compilation
    from realm_jax.plan.report import Plan
    from realm_jax.plan.request import PlanRequest
    from realm_jax.plan.roofline import Roofline

_TARGETS = ", ".join(TARGETS)
# Of a GPU's memory that JAX takes at the start; more needs XLA_PYTHON_CLIENT_MEM_FRACTION.
_USUAL_SHARE = 0.75


def plan(
    model: options.Model,
    target: Annotated[str, typer.Option(metavar="TARGET", help=f"One of {_TARGETS}.", show_default=False)],
    tp: Annotated[
        int | None,
        typer.Option(
            min=1, help="Devices that every matrix is split over; default: 1 GPU, all of a slice.", show_default=False
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each sequence; default: 4096, or the trained context.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    kv_cache_dtype: Annotated[
        str,
        typer.Option(
            "--kv-cache-dtype", metavar="DTYPE", help="Keys and values: float32, float16, bfloat16 or q8_0 (8 bits)."
        ),
    ] = "bfloat16",
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Whether to compile the steps; default: where the target's plug-ins are installed.",
            show_default=False,
        ),
    ] = None,
    compile_seconds: Annotated[float, typer.Option(min=1, help="How long to compile at most.")] = 40.0,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Plan for an accelerator: does the model fit, how fast can it be, do its steps compile.

    Needs neither the accelerator nor the weights: a file may end behind its header, and of hf:owner/repo/file.gguf no
    more than that is fetched. Prints bytes on each device, how
    much context and how many sequences fit, the bound that bandwidth and arithmetic set to prefill and decode, and,
    with the plug-ins of pip install 'realm-jax[aot]', what the compiled steps take and move.
    """
    if "jax" not in sys.modules:  # planning needs no accelerator, and must not take one that is there
        os.environ["JAX_PLATFORMS"] = "cpu"
    from realm_jax import gguf
    from realm_jax.plan.document import as_json
    from realm_jax.plan.report import default_context, make_plan
    from realm_jax.plan.request import PlanRequest

    chips = target_named(target).chips(tp)
    header = located_header(model, cache_dir=cache_dir, offline=offline)
    with header as path, gguf.open(path, header_only=True) as file:
        wanted = default_context(file) if context is None else context
        sizes: Any = {"context": wanted, "batch": batch, "kv_cache_dtype": kv_cache_dtype}
        request = PlanRequest(target=target.lower(), chips=chips, **sizes)
        compilation = _compile(path, request, compile, compile_seconds)
        made = make_plan(file, request, compilation)
    if json:
        print_json(as_json(made))
    else:
        _print(made, str(path.name))


def _compile(path: "Path", request: "PlanRequest", wanted: bool | None, seconds: float) -> "Compilation":
    from realm_jax.plan.compiling import Compilation, compile_steps, why_not

    if wanted is False:
        return Compilation(steps={}, failure="--no-compile was given")
    missing = why_not(request.device_target.device)
    if missing and wanted:
        raise CommandError(f"--compile cannot be done: {missing}")
    if missing:
        return Compilation(steps={}, failure=missing)
    with status(f"Compiling for {request.target}, up to {seconds:.0f} s ..."):
        return compile_steps(str(path), request, os.environ, seconds=seconds)


def verdict(plan: "Plan") -> str:
    """The plan in a sentence."""
    device, decode = plan.device, plan.decode
    known = "" if plan.temporary_bytes is not None else ", temporaries aside"
    of = " on each device" if plan.request.chips > 1 else ""
    size = f"{human_bytes(plan.total_bytes)} of {human_bytes(int(device.memory))}{of}{known}"
    speed = f"decode <= {_rate(decode)} at batch {plan.request.batch} ({decode.bound}-bound)"
    return f"{'fits' if plan.fits else 'does not fit'}: {size}; {speed}"


def _print(plan: "Plan", name: str) -> None:
    request, device, config = plan.request, plan.device, plan.config
    print(verdict(plan))
    chips = f"{request.chips} x {device.title}" if request.chips > 1 else device.title
    print(
        f"\n{name}: {config.architecture}, {config.num_layers} layers, {human_bytes(plan.file_bytes)}; on {chips}, "
        f"context {request.context}, batch {request.batch}, KV cache {request.kv_cache_dtype}"
    )
    print(f"implementation: {request.implementation}")
    _print_memory(plan)
    _print_speed(plan)
    if request.chips > 1:
        _print_splits(plan)
    _print_compiled(plan)
    _print_notes(plan)


def _print_memory(plan: "Plan") -> None:
    device = plan.device
    rows = [("weights", plan.weight_bytes), ("KV cache", plan.cache_bytes)]
    rows += [("padding of layouts", plan.padding_bytes)] if plan.padding_bytes is not None else []
    rows += [("temporaries", plan.temporary_bytes), ("total", plan.total_bytes), ("memory", int(device.memory))]
    title = "bytes on each device" if plan.request.chips > 1 else "bytes on the device"
    _table(
        (title, "", "of memory"),
        [
            (label, "not known", "") if count is None else (label, human_bytes(count), f"{count / device.memory:.1%}")
            for label, count in rows
        ],
    )
    room = plan.room
    context = f"{room.context:,} tokens" if room.context else "none"
    print(f"fits at most: context of {context} at batch {plan.request.batch}; ", end="")
    print(f"batch of {room.batch or 0:,} at context {plan.request.context:,}")


def _print_speed(plan: "Plan") -> None:
    prompt = f"prefill of {plan.request.prefill_tokens} tokens"
    rows = [("decode", plan.decode), (prompt, plan.prefill)]
    _table(
        ("roofline", "at most", "bound by", "moves", "memory ms", "computes", "compute ms"),
        [
            (
                label,
                _rate(bound),
                bound.bound,
                human_bytes(bound.bytes),
                f"{1e3 * bound.memory_seconds:.3f}",
                f"{bound.operations / 1e9:,.1f} GFLOP",
                f"{1e3 * bound.compute_seconds:.3f}",
            )
            for label, bound in rows
        ],
    )


def _print_splits(plan: "Plan") -> None:
    rows = [
        (row.role, row.tensors, "whole on every device" if row.axis is None else f"{row.axis} in {row.parts} parts")
        for row in plan.splits
    ]
    parts = plan.cache[0].parts
    rows.append(("KV cache", len(plan.cache), "whole on every device" if parts == 1 else f"heads in {parts} parts"))
    _table(("split", "tensors", "how"), rows)


def _print_compiled(plan: "Plan") -> None:
    steps = plan.compilation.steps
    if plan.compilation.failure:
        print(f"\ncompiled: {'in part' if steps else 'no'}, because {plan.compilation.failure}")
    if not steps:
        return
    layers = plan.config.num_layers
    rows = [
        (
            name,
            "whole" if step.whole else f"{len(step.layers)} of {layers} layers, one of each form",
            f"{step.seconds:.1f}",
            f"{step.kernels:,}",
            human_bytes(step.temporary_bytes),
            "yes" if step.aliased_bytes else "no",
        )
        for name, step in steps.items()
    ]
    _table(("compiled", "what", "seconds", "kernel calls", "temporaries", "cache in place"), rows)
    moved = plan.bytes_moved
    if moved is not None:
        ratio, scaled = moved / plan.decode.bytes, "" if steps["decode"].whole else ", scaled to all layers"
        print(f"decode moves {human_bytes(moved)} by its program{scaled}: {ratio:.2f} x weights and KV in use")


def _print_notes(plan: "Plan") -> None:
    print()
    if plan.fallbacks:
        kinds = ", ".join(sorted(set(plan.fallbacks.values())))
        print(f"fallbacks: {len(plan.fallbacks)} weights ({kinds}) go through XLA, such as {min(plan.fallbacks)}")
    else:
        print("fallbacks: none, every quantised matrix has a kernel")
    if plan.device.platform == "cuda" and plan.fits and plan.total_bytes > _USUAL_SHARE * plan.device.memory:
        share = plan.total_bytes / plan.device.memory
        print(f"note: JAX takes 75% of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION is above {share:.2f}")
    print(f"figures of the device: {plan.device.source}")


def _rate(bound: "Roofline") -> str:
    return f"{bound.tokens_per_second:,.0f} tokens/s"


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a table on a line of its own, never cut to the width of a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    print()
    Console(width=200, highlight=False, soft_wrap=True).print(table)
