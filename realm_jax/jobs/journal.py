"""Journal: a file of JSON lines that only grows, and that a process may be killed over at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 2**16


class Journal:
    """Lines that were written whole stay; what a killed process left of its last line is cut off.

    One process at a time may have the file open. Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. RuntimeError while another process has it open."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, self._whole_length())
        except OSError as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise RuntimeError(f"{path} is being written by another process; wait for it or end it") from error
            raise

    def _whole_length(self) -> int:
        """Where the last line end is."""
        end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - _CHUNK)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """All objects so far. ValueError for a line that is none: the file was not written by a journal."""
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                if not isinstance(value, dict):
                    raise ValueError(f"line {number} of {self.path} is no JSON object; choose another output file")
                yield value

    def write(self, value: Mapping[str, Any]) -> None:
        """Append an object as one line."""
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Hand what was written to the disk, and let other processes open the file."""
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
