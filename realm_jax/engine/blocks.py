"""BlockPool: which blocks of the KV cache are free."""

from __future__ import annotations


class BlockPool:
    """Blocks 1 to `num_blocks - 1` of the cache; block 0 takes the writes of padding and belongs to nobody."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (block 0 is reserved), got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, 0, -1))

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked `free`."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks were asked for, but {len(self._free)} are free; check free first")
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Give blocks back."""
        self._free.extend(reversed(blocks))
