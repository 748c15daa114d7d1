"""Owns what commands print: JSON, tables, and progress bars on a terminal."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from realm_jax.sources import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as one JSON document; what the output's encoding or UTF-8 cannot hold is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headings, numbers to the right; as wide as it needs, so that a pipe gets whole lines."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        print("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def human_bytes(count: int) -> str:
    """Write a number of bytes with a decimal unit, ``98.4 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[], None]]:
    """Show a line on stderr while the context lasts, or until the given function is called; only on a terminal."""
    shown = sys.stderr.isatty()

    def clear() -> None:
        nonlocal shown
        if shown:
            sys.stderr.write("\r\x1b[2K")  # back to the first column, and erase the line
            sys.stderr.flush()
        shown = False

    if shown:
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield clear
    finally:
        clear()


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """Give a callback that draws a bar for each label on stderr, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with contextlib.ExitStack() as drawing:
        bars, tasks = None, {}

        def report(label: str, done: int, total: int | None) -> None:
            nonlocal bars
            bars = bars or drawing.enter_context(_bars())  # nothing is drawn, nor imported, until there is something
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total)

        yield report


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)
