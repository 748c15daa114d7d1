"""Window: the weights of a model's parts within a bound of memory; some stay, the others come one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from realm_jax.engine.placement import on_this_device
from realm_jax.quant import MappedTensor

_GOLDEN = 0.6180339887498949


class Window:
    """Hands out the weights of parts, each a pytree with MappedTensors, in the order in which steps use them.

    As many parts as fit stay in memory. The others take turns in what is left, room for at least two of them: while
    one computes, a thread reads the next. `memory`: bytes for all of it, with the pages of the file that are read
    meanwhile. All weights lie on the default device of the thread that makes the Window.

    Raises:
        ValueError: less memory than two neighbouring parts need.
    """

    def __init__(self, parts: Sequence[Any], memory: int) -> None:
        self._parts = parts
        self._sizes = [sum(tensor.nbytes for tensor in _mapped(part)) for part in parts]
        least = least_memory(parts)
        if memory < least:
            raise ValueError(f"a window for these weights must have at least {least} bytes, got {memory}")
        self._free = memory - _reading(parts)
        pinned = choose_pinned(self._sizes, self._free)
        self._read = on_this_device(read_part)
        self._pinned = {part: read_part(parts[part]) for part in sorted(pinned)}
        self._free -= sum(self._sizes[part] for part in pinned)
        self._streamed = [part for part in range(len(parts)) if part not in pinned]
        self._ahead: deque[tuple[int, Future[Any]]] = deque()
        self._next = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")

    @property
    def pinned(self) -> frozenset[int]:
        """The parts that stay in memory."""
        return frozenset(self._pinned)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the parts that are read anew in every step."""
        return sum(self._sizes[part] for part in self._streamed)

    def keeps_pages(self, part: int) -> bool:
        """Whether pages of the file hold what stays in memory of a part."""
        if part not in self._pinned:
            return False
        return any(tensor.is_behind(data) for tensor, data in _pairs(self._parts[part], self._pinned[part]))

    def enter(self, part: int) -> Any:
        """The weights of a part, waiting until they are read. `leave` it before the next one is entered."""
        if part in self._pinned:
            return self._pinned[part]
        while self._ahead and self._ahead[0][0] != part:
            self._drop_first(None)  # read ahead for a step that went another way
        if not self._ahead:
            self._next = self._streamed.index(part)
        self._read_ahead()
        try:
            return self._ahead[0][1].result()
        except BaseException:
            self._drop_first(None)
            raise

    def leave(self, part: int, after: jax.Array) -> None:
        """Let go of a part as soon as `after`, which is computed from it, is there."""
        if part not in self._pinned:
            self._drop_first(after)
            self._read_ahead()

    def _read_ahead(self) -> None:
        while len(self._ahead) < len(self._streamed) and self._sizes[self._streamed[self._next]] <= self._free:
            part = self._streamed[self._next]
            self._free -= self._sizes[part]
            self._ahead.append((part, self._reader.submit(self._read, self._parts[part])))
            self._next = (self._next + 1) % len(self._streamed)

    def _drop_first(self, after: jax.Array | None) -> None:
        """The reader drops in the order in which it was asked to read: what it reads next finds the room free."""
        part, weights = self._ahead.popleft()
        self._free += self._sizes[part]
        self._reader.submit(_drop, self._parts[part], weights, after)


def choose_pinned(sizes: Sequence[int], memory: int) -> frozenset[int]:
    """The parts to keep, spread evenly, so that the reader has the time of those to read what lies between.

    What is left of `memory` holds any two neighbours, in a ring, of the others.
    """
    if sum(sizes) <= memory:
        return frozenset(range(len(sizes)))
    pinned: set[int] = set()
    for part in sorted(range(len(sizes)), key=lambda part: part * _GOLDEN % 1):
        chosen = pinned | {part}
        others = [size for i, size in enumerate(sizes) if i not in chosen]
        if sum(sizes) - sum(others) + _room(others) <= memory:
            pinned = chosen
    return frozenset(pinned)


def least_memory(parts: Sequence[Any]) -> int:
    """The least bytes with which a Window over these parts works."""
    sizes = [sum(tensor.nbytes for tensor in _mapped(part)) for part in parts]
    return _reading(parts) + _room(sizes)


def read_part(part: Any) -> Any:
    """A part with its MappedTensors read."""
    return jax.tree.map(lambda leaf: leaf.read() if isinstance(leaf, MappedTensor) else leaf, part)


def _room(sizes: Sequence[int]) -> int:
    if len(sizes) == 1:
        return sizes[0]
    return max((one + other for one, other in zip(sizes, [*sizes[1:], *sizes[:1]], strict=True)), default=0)


def _reading(parts: Sequence[Any]) -> int:
    """One tensor at a time is packed: its pages of the file are in memory together with the result."""
    return max((tensor.raw.nbytes for part in parts for tensor in _mapped(part)), default=0)


def _mapped(part: Any) -> list[MappedTensor]:
    return [leaf for leaf in jax.tree.leaves(part) if isinstance(leaf, MappedTensor)]


def _pairs(part: Any, weights: Any) -> list[tuple[MappedTensor, Any]]:
    """Each MappedTensor of a part with what was read of it."""
    leaves, treedef = jax.tree.flatten(part)
    pairs = zip(leaves, treedef.flatten_up_to(weights), strict=True)
    return [(leaf, data) for leaf, data in pairs if isinstance(leaf, MappedTensor)]


def _drop(part: Any, weights: Future[Any], after: jax.Array | None) -> None:
    """Free a part's arrays, and the pages of the file behind them, once what uses them is done."""
    try:
        if after is not None:
            after.block_until_ready()
    finally:
        if weights.exception() is None:
            for tensor, data in _pairs(part, weights.result()):
                for array in jax.tree.leaves(data):
                    array.delete()
                tensor.raw.release()
