"""Compiles the cases of every kernel for one target and describes the machine code as rows."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from aot_cuda_code import CudaKernel, kernels_of
from aot_rows import Row
from aot_targets import empty
from aot_tpu_code import kernel_of

import pallas_kernels
from pallas_kernels.case import KernelCase, Program
from realm_jax.plan.devices import Device
from realm_jax.plan.programs import Compiled, compile_for, device_mesh

MOST_PER_CODE = 5.0
"""Instructions per weight code of a decode kernel that are wanted at most."""
# Of a thread on CUDA.
_MOST_REGISTERS = 255
# Moves of registers that every kernel has: four on a v5e, five on a v6e.
_FEWEST_MOVES = 5


def all_cases() -> Iterator[KernelCase]:
    """The `CASES` of every folder of pallas_kernels."""
    for module in pkgutil.iter_modules(pallas_kernels.__path__):
        if module.ispkg:
            yield from importlib.import_module(f"pallas_kernels.{module.name}.cases").CASES


def kernel_rows(target: Device, dump: Path, match: str = "") -> Iterator[Row]:
    """A row for each case that has a kernel on the target and whose name contains `match`."""
    mesh = device_mesh(target)
    for case in all_cases():
        if match in case.name and target.backend in case.backends:
            yield _row(target, mesh, dump, case)


def _row(target: Device, mesh: Any, dump: Path, case: KernelCase) -> Row:
    try:
        # Block sizes, and with them a trip's codes, are those of the target's table.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            program = case.program(target.backend)
        compiled, facts, reason = program_facts(target, mesh, dump, program)
    except Exception as error:  # whatever a compiler throws is the row's result
        return Row(target=target.name, name=case.name, failure=one_line(error), note=case.note)
    return Row(
        target=target.name,
        name=case.name,
        seconds=compiled.seconds,
        bytes=compiled.argument_bytes,
        calls=compiled.kernels,
        fallbacks=int(compiled.kernels == 0),
        failure="" if compiled.kernels else "the program holds no kernel",
        note="; ".join(filter(None, (case.note, reason, _issue_note(target, program, facts["per_code"])))),
        **facts,
    )


def program_facts(target: Device, mesh: Any, dump: Path, program: Program) -> tuple[Compiled, dict[str, Any], str]:
    """Compile a program and say what its kernel takes: `spills`, `memory`, `per_code` of `Row`, on CUDA `registers`.

    Where registers spill, the last result says where they go and how often.

    Raises:
        RuntimeError: the compiled program does not hold the kernel.
    """
    empty(dump)
    compiled = compile_for(mesh, target.platform, program.function, program.operands)
    return compiled, *(_cuda_facts if target.platform == "cuda" else _tpu_facts)(dump, program)


def _issue_note(target: Device, program: Program, per_code: float | None) -> str:
    """Where a loop is longer than wanted: the bandwidth at which instructions, not memory, become what it waits for."""
    if target.platform != "cuda" or not per_code or per_code <= MOST_PER_CODE:
        return ""
    assert program.codes and program.bytes_moved
    rate = target.issue / per_code * program.bytes_moved / program.codes
    return f"instructions suffice for {rate / 1e12:.1f} TB/s of {target.bandwidth / 1e12:.1f}"


def _cuda_facts(dump: Path, program: Program) -> tuple[dict[str, Any], str]:
    files = [path for path in dump.iterdir() if path.suffix == ".ptx"]
    kernels = [kernel for path in files for kernel in kernels_of(path, program.entry)]
    if not kernels:
        raise RuntimeError(f"the dump holds no kernel named {program.entry}")
    longest = max(kernels, key=lambda kernel: kernel.instructions)
    facts = {
        "registers": max(kernel.registers for kernel in kernels),
        "spills": sum(kernel.spill_bytes for kernel in kernels),
        "memory": max(kernel.shared_bytes for kernel in kernels),
        "per_code": _instructions_per_code(longest, program),
    }
    if not facts["spills"] or not longest.loops:
        return facts, ""
    loop = longest.loops[0]
    inside = f"spills are {loop.spills} of the main loop's {loop.length} instructions"
    where = inside if loop.spills else "nothing spills in the main loop"
    kept = f"; the assembler keeps to {longest.registers} of {_MOST_REGISTERS} registers for more blocks at a time"
    return facts, where + (kept if longest.registers < _MOST_REGISTERS else "")


def _instructions_per_code(kernel: CudaKernel, program: Program) -> float | None:
    if program.loop_codes is None or not kernel.loops:
        return None
    return kernel.loops[0].length / program.loop_codes


def _tpu_facts(dump: Path, program: Program) -> tuple[dict[str, Any], str]:
    kernel = kernel_of(dump.iterdir(), program.entry)
    if kernel is None:
        raise RuntimeError(f"the dump holds no kernel named {program.entry}")
    rate = None if program.loop_codes is None or not kernel.bundles else program.loop_codes / kernel.bundles
    facts = {"spills": kernel.spills, "memory": kernel.vmem_bytes, "per_code": rate}
    if kernel.spills <= _FEWEST_MOVES:
        return facts, ""
    moves = f"{kernel.spills} moves in {kernel.bundles} bundles"
    return facts, f"{moves}: a block's values exceed the registers, and wait in the vector memory next to them"


def one_line(error: Exception) -> str:
    """An error in a table's cell."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].replace("|", "/")
