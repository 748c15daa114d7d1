"""BlockManager: which blocks of the KV cache each sequence holds, and which hold prefixes that others can use."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

NULL_BLOCK = 0
"""Takes the writes of padding, belongs to nobody, and stands in tables for what a window has passed."""

_KEY_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockGroup:
    """Layers that share block tables: how many blocks their caches have, block 0 included, and what they look back on.

    `window` w: a position p reads (p - w, p]; None: all positions up to p.
    """

    num_blocks: int
    window: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCopy:
    """A block whose contents the next step needs in another one, before anything is written."""

    group: int
    source: int
    target: int


@dataclasses.dataclass(kw_only=True)
class BlockTable:
    """The blocks of one sequence, in order of position, for each group; the manager alone changes it.

    `keys` name the leading full blocks by their tokens and all tokens before them; `shared` of them can be found by
    others.
    """

    root: bytes
    groups: tuple[array[int], ...]
    keys: list[bytes] = dataclasses.field(default_factory=list)
    shared: int = 0


class BlockManager:
    """Hands out blocks, counts who holds them, and finds prefixes that were computed before.

    A block that nobody holds stays findable until it is needed for something else, least recently used first. What is
    written later never reaches a block that two sequences hold: `extend` gives the writer a copy.
    """

    def __init__(self, groups: Sequence[BlockGroup], block_size: int, *, prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.groups = tuple(groups)
        self.prefix_caching = prefix_caching
        self._pools = [_Pool(group.num_blocks) for group in groups]

    @property
    def free(self) -> tuple[int, ...]:
        """How many blocks of each group nobody holds."""
        return tuple(len(pool.free) for pool in self._pools)

    @property
    def idle(self) -> bool:
        """Whether nobody holds any block."""
        return all(len(pool.free) == group.num_blocks - 1 for pool, group in zip(self._pools, self.groups, strict=True))

    def new_table(self, salt: bytes = b"", keys: list[bytes] | None = None) -> BlockTable:
        """An empty table. Sequences find each other's prefixes only under the same `salt`: a tenant, an adapter.

        `keys`: those of an earlier table of the same tokens and salt; the new one goes on with the list.
        """
        root = hashlib.blake2b(salt, digest_size=_KEY_BYTES, person=b"realm-root").digest()
        return BlockTable(root=root, groups=tuple(array("i") for _ in self.groups), keys=[] if keys is None else keys)

    def blocks_for(self, length: int, ahead: int) -> tuple[int, ...]:
        """Blocks of each group that a sequence of `length` positions holds at most, `ahead` being written at once."""
        return tuple(
            -(-length // self.block_size) if group.window is None else self._window_blocks(group.window, length, ahead)
            for group in self.groups
        )

    def _window_blocks(self, window: int, length: int, ahead: int) -> int:
        # The window and what is written reach into one block more than they fill.
        return min(-(-length // self.block_size), -(-(window + ahead) // self.block_size) + 1)

    def fits(self, needed: Sequence[int]) -> bool:
        """Whether this many blocks of each group are free."""
        return all(len(pool.free) >= count for pool, count in zip(self._pools, needed, strict=True))

    def reuse(self, table: BlockTable, tokens: array[int], computed: int, limit: int) -> int:
        """Take blocks that hold the tokens after the first `computed`, as far as `limit`; returns what is held then.

        A prefix counts as found where every group has what a reader behind it looks back on. Nothing is found where
        the table has room for more than the `computed` tokens.
        """
        first = computed // self.block_size
        if not self.prefix_caching or len(table.groups[0]) != -(-computed // self.block_size):
            return computed
        count = self._longest_prefix(table, tokens, first, limit // self.block_size)
        if count == first:
            return computed
        for group, pool, blocks in zip(self.groups, self._pools, table.groups, strict=True):
            start = self._first_visible(group, count * self.block_size)
            begun = blocks.pop() if len(blocks) > first else NULL_BLOCK
            blocks.extend(pool.take(table.keys[i]) if i >= start else NULL_BLOCK for i in range(first, count))
            if begun != NULL_BLOCK:
                pool.release(begun)
        table.shared = count
        return count * self.block_size

    def _longest_prefix(self, table: BlockTable, tokens: array[int], first: int, most: int) -> int:
        whole = [p for p, g in zip(self._pools, self.groups, strict=True) if g.window is None] or self._pools[:1]
        windowed = [(g, p) for p, g in zip(self._pools, self.groups, strict=True) if g.window is not None]
        count = first
        while count < most:
            key, own = self._key(table, tokens, count), self._tokens(tokens, count)
            if not all(pool.holds(key, own) for pool in whole):
                break
            count += 1
        while count > first:
            starts = [(max(first, self._first_visible(g, count * self.block_size)), p) for g, p in windowed]
            if all(p.holds(table.keys[i], self._tokens(tokens, i)) for start, p in starts for i in range(start, count)):
                break
            count -= 1
        return count

    def writable(self, table: BlockTable, start: int, end: int) -> bool:
        """Whether positions `start` to `end - 1` can be written as the table is: `extend` would change nothing."""
        size = self.block_size
        first, needed = start // size, -(-end // size)
        for group, pool, blocks in zip(self.groups, self._pools, table.groups, strict=True):
            if len(blocks) < needed or any(pool.holders[block] > 1 for block in blocks[first:]):
                return False
            passed = self._first_visible(group, start)
            if passed and blocks[passed - 1] != NULL_BLOCK:
                return False
        return True

    def extend(self, table: BlockTable, start: int, end: int) -> list[BlockCopy] | None:
        """Make room to write positions `start` to `end - 1`; None, and nothing is changed, where blocks are lacking.

        Gives back what windows have passed at `start`. The copies must be made before the positions are written.
        """
        self._slide(table, start)
        needed = -(-end // self.block_size)
        written = start // self.block_size
        borrowed = [
            [i for i in range(written, len(blocks)) if pool.holders[blocks[i]] > 1]
            for pool, blocks in zip(self._pools, table.groups, strict=True)
        ]
        wanted = [max(0, needed - len(blocks)) + len(own) for blocks, own in zip(table.groups, borrowed, strict=True)]
        if not self.fits(wanted):
            return None
        copies = []
        for number, (pool, blocks) in enumerate(zip(self._pools, table.groups, strict=True)):
            for i in borrowed[number]:
                source, blocks[i] = blocks[i], pool.allocate()
                pool.release(source)
                copies.append(BlockCopy(group=number, source=source, target=blocks[i]))
            while len(blocks) < needed:
                blocks.append(pool.allocate())
        return copies

    def share(self, table: BlockTable, tokens: array[int], computed: int) -> None:
        """Let others find the full blocks among the first `computed` positions, as far as their tokens are known."""
        if not self.prefix_caching:
            return
        full = min(computed, len(tokens)) // self.block_size
        for i in range(table.shared, full):
            key, own = self._key(table, tokens, i), self._tokens(tokens, i)
            for pool, blocks in zip(self._pools, table.groups, strict=True):
                if blocks[i] != NULL_BLOCK:
                    pool.register(blocks[i], key, own)
        table.shared = max(table.shared, full)

    def fork(self, table: BlockTable, positions: int) -> BlockTable | None:
        """A table that holds the blocks of the first `positions` positions too.

        None where a window has passed what a reader behind them looks back on.
        """
        count = -(-positions // self.block_size)
        groups = tuple(blocks[:count] for blocks in table.groups)
        if any(
            NULL_BLOCK in blocks[self._first_visible(group, positions) :]
            for group, blocks in zip(self.groups, groups, strict=True)
        ):
            return None
        for pool, blocks in zip(self._pools, groups, strict=True):
            for block in blocks:
                if block != NULL_BLOCK:
                    pool.hold(block)
        full = positions // self.block_size
        return BlockTable(root=table.root, groups=groups, keys=table.keys[:full], shared=min(table.shared, full))

    def release(self, table: BlockTable) -> None:
        """Give all blocks back; the end of a sequence is the first to be used for something else."""
        for pool, blocks in zip(self._pools, table.groups, strict=True):
            for block in reversed(blocks):
                if block != NULL_BLOCK:
                    pool.release(block)
            del blocks[:]

    def forget(self) -> None:
        """Make nothing findable any more; blocks that are held stay held."""
        for pool in self._pools:
            pool.forget()

    def held(self) -> Iterator[dict[int, int]]:
        """For each group how many hold each block, of those that anybody holds."""
        for pool in self._pools:
            yield {block: count for block, count in enumerate(pool.holders) if count}

    def _first_visible(self, group: BlockGroup, position: int) -> int:
        """The first block that a reader at `position` looks back on."""
        return 0 if group.window is None else max(0, position - group.window + 1) // self.block_size

    def _slide(self, table: BlockTable, position: int) -> None:
        for group, pool, blocks in zip(self.groups, self._pools, table.groups, strict=True):
            for i in range(min(self._first_visible(group, position), len(blocks)) - 1, -1, -1):
                if blocks[i] == NULL_BLOCK:
                    break
                pool.release(blocks[i])
                blocks[i] = NULL_BLOCK

    def _tokens(self, tokens: array[int], index: int) -> bytes:
        return tokens[index * self.block_size : (index + 1) * self.block_size].tobytes()

    def _key(self, table: BlockTable, tokens: array[int], index: int) -> bytes:
        """The key of a full block, which names its tokens and all before them."""
        while len(table.keys) <= index:
            i = len(table.keys)
            before = table.keys[-1] if table.keys else table.root
            table.keys.append(hashlib.blake2b(before + self._tokens(tokens, i), digest_size=_KEY_BYTES).digest())
        return table.keys[index]


class _Pool:
    """The blocks of one group. `free` is in the order in which blocks are used again."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (block 0 is reserved), got {num_blocks}")
        self.holders = [0] * num_blocks
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._key_of: dict[int, bytes] = {}
        self._found: dict[bytes, tuple[int, bytes]] = {}

    def holds(self, key: bytes, tokens: bytes) -> bool:
        """Whether a block of this key has these tokens."""
        found = self._found.get(key)
        return found is not None and found[1] == tokens

    def take(self, key: bytes) -> int:
        block, _ = self._found[key]
        self.hold(block)
        return block

    def hold(self, block: int) -> None:
        if not self.holders[block]:
            del self.free[block]
        self.holders[block] += 1

    def allocate(self) -> int:
        block, _ = self.free.popitem(last=False)
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._found[key]
        self.holders[block] = 1
        return block

    def release(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block]:
            self.free[block] = None
            if block not in self._key_of:
                self.free.move_to_end(block, last=False)

    def register(self, block: int, key: bytes, tokens: bytes) -> None:
        if key not in self._found and block not in self._key_of:
            self._found[key] = (block, tokens)
            self._key_of[block] = key

    def forget(self) -> None:
        self._found.clear()
        self._key_of.clear()
