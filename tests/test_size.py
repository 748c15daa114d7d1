"""Files and functions stay small enough to be read in one sitting."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ("realm_jax", "cpu_kernels", "pallas_kernels", "convert")
FOLDERS = (*LIBRARY, "tests", "benchmarks")

FILE_LINES, MEDIAN_FILE_LINES = 500, 150
KERNEL_FILE_LINES = 600
FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 60, 12


def sources(folders: tuple[str, ...], suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """List the source files below some folders."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT) for path in files)


def line_count(file: Path) -> int:
    return len((ROOT / file).read_text(encoding="utf-8").splitlines())


def function_lengths(file: Path) -> Iterator[tuple[str, int]]:
    """Name each function of a file with its number of lines, decorators and docstring included."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield f"{file}:{first} {node.name}", (node.end_lineno or first) - first + 1


def limit(file: Path) -> int:
    return KERNEL_FILE_LINES if file.parts[0].endswith("_kernels") else FILE_LINES


def test_files_are_short() -> None:
    counts = {file: line_count(file) for file in sources(FOLDERS, (".py", ".cc", ".h"))}
    assert counts
    assert not {str(file): lines for file, lines in counts.items() if lines > limit(file)}


def test_functions_are_short() -> None:
    lengths = {name: lines for file in sources(FOLDERS) for name, lines in function_lengths(file)}
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}


def test_every_file_says_in_its_first_line_what_it_owns() -> None:
    docstrings = {file: ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) for file in sources(FOLDERS)}
    assert not [str(file) for file, text in docstrings.items() if not text or not text.splitlines()[0].endswith(".")]


def test_the_median_file_is_short() -> None:
    assert statistics.median(line_count(file) for file in sources(LIBRARY)) <= MEDIAN_FILE_LINES


def test_the_median_function_is_short() -> None:
    lengths = [lines for file in sources(LIBRARY) for _, lines in function_lengths(file)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES
