"""A bounds-checked position in a mapped file: every read is checked against the file's size first."""

import mmap
import struct

from realm_jax.gguf.errors import GGUFError, TruncatedError

DAMAGED = "the file is damaged or incomplete, so fetch it again"


class Cursor:
    """Reads integers and strings one after another from `buffer` and moves forward.

    `order` is the `struct` prefix of the file's byte order, "<" or ">". Each read takes the name of the
    field, which the error names together with the byte offset.
    """

    __slots__ = ("buffer", "name", "order", "position", "size")

    def __init__(self, buffer: mmap.mmap, name: str, position: int = 0, order: str = "<") -> None:
        """Start at byte `position` of `buffer`; `name` stands for the file in messages."""
        self.buffer = buffer
        self.name = name
        self.position = position
        self.order = order
        self.size = len(buffer)

    @property
    def remaining(self) -> int:
        """The number of bytes from the position to the end of the file."""
        return self.size - self.position

    def error(self, field: str, problem: str, at: int | None = None, remedy: str = DAMAGED) -> GGUFError:
        """Make the error for `field` at byte `at` (the position when None); `problem` says rule and value."""
        return GGUFError(self._sentence(field, problem, at, remedy))

    def truncated(self, field: str, problem: str, at: int | None = None) -> TruncatedError:
        """Likewise for a field that the file ends before."""
        return TruncatedError(self._sentence(field, problem, at, DAMAGED))

    def _sentence(self, field: str, problem: str, at: int | None, remedy: str) -> str:
        return f"{self.name}: {field} at byte {self.position if at is None else at} {problem}; {remedy}"

    def advance(self, count: int, field: str) -> int:
        """Step over `count` bytes and return where they start."""
        if count > self.remaining:
            raise self.truncated(field, f"needs {count} bytes, but the file ends after {self.remaining}")
        start = self.position
        self.position += count
        return start

    def number(self, code: str, field: str) -> int | float:
        """Read one number of the `struct` letter `code`."""
        layout = self.order + code
        start = self.advance(struct.calcsize(layout), field)
        return struct.unpack_from(layout, self.buffer, start)[0]

    def integer(self, code: str, field: str) -> int:
        """Read one integer of the `struct` letter `code`."""
        return int(self.number(code, field))

    def count(self, code: str, field: str, item_bytes: int, limit: int | None = None) -> int:
        """Read a count of items that take at least `item_bytes` each; what follows must be able to hold them."""
        start = self.position
        count = self.integer(code, field)
        most = self.remaining // item_bytes
        if count > most:
            raise self.truncated(field, f"must be at most {most}, for which the file has bytes, got {count}", start)
        if limit is not None and count > limit:
            raise self.error(field, f"must be at most {limit}, got {count}", start)
        return count

    def span(self, field: str) -> tuple[int, int]:
        """Step over one string and return where its bytes start and end."""
        length = self.count("Q", f"the length of {field}", 1)
        start = self.advance(length, field)
        return start, start + length

    def name_string(self, field: str, limit: int) -> str:
        """Read a name: 1 to `limit` bytes of UTF-8."""
        at = self.position
        start, end = self.span(field)
        if not 1 <= end - start <= limit:
            raise self.error(field, f"must have 1 to {limit} bytes, got {end - start}", at)
        try:
            return self.buffer[start:end].decode()
        except UnicodeDecodeError:
            raise self.error(field, f"must be UTF-8, got {self.buffer[start:end][:32]!r}", start) from None
