"""What the assembler says about the CUDA kernels of a dump: registers, spills, shared memory, instructions of loops."""

from __future__ import annotations

import collections
import dataclasses
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_PACKAGES = Path(sysconfig.get_paths()["purelib"], "nvidia")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop of machine code that holds no other: its instructions by name."""

    instructions: collections.Counter[str]

    @property
    def length(self) -> int:
        """Instructions of one trip."""
        return self.instructions.total()

    @property
    def spills(self) -> int:
        """Those that store or load a register that did not fit."""
        return sum(count for name, count in self.instructions.items() if name.split(".")[0] in ("STL", "LDL"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CudaKernel:
    """One kernel. `spill_bytes`: stores and loads of registers that did not fit; `loops`: longest first."""

    entry: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    loops: tuple[Loop, ...]


def kernels_of(ptx: Path, entry: str) -> Iterator[CudaKernel]:
    """Assemble a file of PTX and describe the kernels whose name contains `entry`; RuntimeError where it is refused."""
    text = ptx.read_text()
    names = [name for name in re.findall(r"\.entry (\S+?)\(", text) if entry in name]
    if not names:
        return
    cubin = ptx.with_suffix(".cubin")
    architecture = re.search(r"\.target (\w+)", text)
    assert architecture
    command = [_tool("ptxas"), f"-arch={architecture[1]}", "-v", str(ptx), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas refuses {ptx.name}: {done.stderr[:300]}")
    for name in names:
        part = done.stderr[done.stderr.index(f"'{name}'") :]
        code = _instructions(cubin, name)
        yield CudaKernel(
            entry=name,
            registers=_number(r"Used (\d+) registers", part),
            spill_bytes=_number(r"(\d+) bytes spill stores", part) + _number(r"(\d+) bytes spill loads", part),
            shared_bytes=max(_number(r"(\d+) bytes smem", part), _dynamic_shared_bytes(ptx, name)),
            instructions=len(code),
            loops=tuple(sorted(_innermost_loops(code), key=lambda loop: -loop.length)),
        )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _tool(name: str) -> str:
    """The program from one of NVIDIA's packages in this environment."""
    found = next(_PACKAGES.rglob(f"bin/{name}"), None)
    if found is None:
        raise RuntimeError(f"{name} is not in this environment: install the extra 'aot'")
    return str(found)


def _dynamic_shared_bytes(ptx: Path, entry: str) -> int:
    """Shared memory that a launch asks for: the dump's list of thunks has it beside the kernel's name."""
    sizes = [0]
    for thunks in ptx.parent.glob(ptx.name.split(".")[0] + "*thunk_sequence.txt"):
        for line in thunks.read_text().splitlines():
            if entry in line:
                sizes += [int(size) for size in re.findall(r"shared_memory: (\d+) bytes", line)]
    return max(sizes)


def _instructions(cubin: Path, entry: str) -> list[str]:
    """The kernel's machine code, with labels as lines that end in a colon."""
    text = subprocess.run([_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\s*\.section\s+", text, flags=re.MULTILINE)
    own = next(section for section in sections if section.startswith(f".text.{entry}"))
    lines = []
    for line in own.splitlines():
        label = re.match(r"(\.L\w+):", line.strip())
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)
        if label or code:
            lines.append(label[0] if label else code[1])  # type: ignore[index]
    return lines


def _innermost_loops(code: list[str]) -> Iterator[Loop]:
    """From each backward branch to its label, where no shorter loop lies inside."""
    labels = {line[:-1]: i for i, line in enumerate(code) if line.endswith(":")}
    spans = []
    for i, line in enumerate(code):
        branch = re.search(r"\bBRA\b.*?(\.L\w+)", line)
        if branch and labels.get(branch[1], i) < i:
            spans.append((labels[branch[1]], i))
    for first, last in spans:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in spans):
            continue
        body = [line for line in code[first : last + 1] if not line.endswith(":")]
        yield Loop(instructions=collections.Counter(re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in body))
