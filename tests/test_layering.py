"""Imports run downward: no module of the library imports a room that lies above its own."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "realm_jax"
KERNELS = ("cpu_kernels", "pallas_kernels")
PACKAGES = (LIBRARY, *KERNELS, "convert")

# The rooms of the house, bottom first. A room imports only rooms of the rows before its own.
ROWS: tuple[tuple[str, ...], ...] = (
    ("collector", "gguf", "sources", "outputs", "shards", "host_cpu", "sharding", *KERNELS),
    ("quant", "tokenizer", "compilation_cache"),
    ("ops", "structured"),
    ("nn", "sampling"),
    ("models",),
    ("engine",),
    ("activations",),
    ("llm",),
    (LIBRARY,),
    ("evals", "export", "jobs", "plan", "server"),
    ("cli",),
    ("convert",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    """Turn realm_jax/nn/rope.py into realm_jax.nn.rope, and a package's __init__.py into the package."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, file: Path) -> Iterator[str]:
    """Name every module, or member of a module, that an import statement anywhere in the source names."""
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """Return the room that a module lies in, None outside the house; what realm_jax itself exports is its front."""
    top, _, rest = module.partition(".")
    if top != LIBRARY:
        return top if top in PACKAGES else None
    room = rest.partition(".")[0]
    exists = (ROOT / LIBRARY / room).is_dir() or (ROOT / LIBRARY / f"{room}.py").is_file()
    return room if room and exists else LIBRARY


def arrows_up(source: str, file: Path) -> list[str]:
    """List the imports of a file that do not run downward."""
    own = room_of(module_name(file))
    assert own in ROW_OF, f"{file}: give the room {own} a row in this test"
    wrong = []
    for module in imported_modules(source, file):
        room = room_of(module)
        if room is None or room == own:
            continue
        # Kernels turn arrays into arrays: they know nothing else of the house. Its front may hold what it exports.
        if own in KERNELS or ROW_OF.get(room, len(ROWS)) >= ROW_OF[own]:
            wrong.append(f"{file} imports {module}")
    return wrong


def test_imports_run_downward() -> None:
    assert FILES
    assert not [arrow for file in FILES for arrow in arrows_up((ROOT / file).read_text(encoding="utf-8"), file)]


@pytest.mark.parametrize(
    ("file", "source", "seen"),
    [
        ("realm_jax/nn/norm.py", "from realm_jax.ops import paging", False),
        ("realm_jax/nn/norm.py", "import realm_jax.models.llama", True),
        ("realm_jax/nn/norm.py", "from realm_jax import models", True),
        ("realm_jax/nn/norm.py", "from ..models import llama", True),
        ("realm_jax/nn/norm.py", "from .linear import Linear", False),
        ("realm_jax/nn/__init__.py", "from .linear import Linear", False),
        ("realm_jax/nn/norm.py", "def late():\n    from realm_jax import LLM", True),
        ("realm_jax/quant/blocks.py", "import realm_jax.tokenizer", True),
        ("realm_jax/tokenizer/bpe.py", "from realm_jax.gguf import GGMLType", False),
        ("realm_jax/cli/bench.py", "from realm_jax import LLM", False),
        ("realm_jax/cli/bench.py", "import convert.gguf", True),
        ("convert/quantize.py", "import realm_jax.cli", False),
        ("cpu_kernels/native.py", "from realm_jax.gguf import GGMLType", True),
        ("pallas_kernels/matmul.py", "import cpu_kernels", True),
        ("realm_jax/gguf/file.py", "import numpy, mmap", False),
    ],
)
def test_the_check_sees_an_arrow_that_runs_up(file: str, source: str, seen: bool) -> None:
    assert bool(arrows_up(source, Path(file))) == seen


@pytest.mark.parametrize("module", ["realm_jax", "realm_jax.gguf", "realm_jax.structured", "realm_jax.tokenizer"])
def test_files_and_text_need_no_jax(module: str) -> None:
    loaded = f"import sys, {module}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_files_text_and_grammars_never_name_jax() -> None:
    named = [
        f"{file} imports {module}"
        for file in FILES
        if room_of(module_name(file)) in ("gguf", "structured", "tokenizer")
        for module in imported_modules((ROOT / file).read_text(encoding="utf-8"), file)
        if module.split(".")[0] in ("jax", "jaxlib", "flax")
    ]
    assert not named
