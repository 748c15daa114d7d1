"""How much KV cache fits: bytes per position, memory at hand, and the sizes that follow from them."""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realm_jax.models import LayerCache
from realm_jax.ops import kv_cache_bytes

_SHARE = 0.25  # of the memory at hand; weights, programs and the user's own arrays need the rest
_USUAL = 2**30  # enough for the usual batch; taking more is slower to allocate and only serves long contexts


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The context that one sequence may reach, in tokens, and the blocks of each group's caches, block 0 included.

    A single number of blocks is meant for all groups.
    """

    max_model_len: int
    num_blocks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSize:
    """What layers that share a block table keep: `block_bytes` of a block in all of them, and how far they look back.

    `window` None: every position is kept. Otherwise a sequence needs `window_blocks` of them at most.
    """

    block_bytes: int
    window_blocks: int | None = None


def group_sizes(
    spec: Sequence[LayerCache], block_size: int, kv_cache_dtype: str, *, ahead: int
) -> tuple[GroupSize, ...]:
    """The sizes of a model's groups; `ahead` positions of a sequence are written at once."""
    sizes = []
    for number in range(1 + max(layer.group for layer in spec)):
        layers = [layer for layer in spec if layer.group == number]
        arrays = [layer.array(1, block_size, kv_cache_dtype) for layer in layers]
        windows = [layer.window for layer in layers if layer.window is not None]
        whole = len(windows) < len(layers)
        sizes.append(
            GroupSize(
                block_bytes=sum(map(kv_cache_bytes, arrays)),
                window_blocks=None if whole else -(-(max(windows) + ahead) // block_size) + 1,
            )
        )
    return tuple(sizes)


def memory_at_hand(device: Any) -> int | None:
    """Free bytes on a device: of the accelerator, or of the host for the CPU; None where nothing tells."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def cache_size(
    *,
    trained: int,
    wanted: int | None,
    groups: Sequence[GroupSize],
    max_num_seqs: int,
    block_size: int,
    budget: int | None,
    at_hand: int | None,
) -> CacheSize:
    """Choose context and blocks.

    `wanted` is the caller's max_model_len, `budget` its kv_cache_memory in bytes. Without a budget the cache takes at
    most a quarter of the memory at hand, and 1 GiB unless one sequence of the full context needs more. Raises
    ValueError where `wanted` does not fit.
    """
    longest = trained if wanted is None else wanted
    if longest < 1:
        raise ValueError(f"max_model_len must be at least 1 token, got {longest}")
    # Windows of all sequences, and as much again for prefixes that may be met once more.
    caps = [None if g.window_blocks is None else 2 * max_num_seqs * g.window_blocks for g in groups]

    def blocks(count: int) -> tuple[int, ...]:
        return tuple(1 + (count if cap is None else min(count, cap)) for cap in caps)

    def size(count: int) -> int:
        return sum(n * group.block_bytes for n, group in zip(blocks(count), groups, strict=True))

    needed = size(-(-longest // block_size))
    if budget is None:
        share = int(_SHARE * at_hand) if at_hand is not None else _USUAL
        budget = min(share, max(_USUAL, needed))
    most = max_num_seqs * -(-longest // block_size)
    count = bisect.bisect_right(range(most + 1), budget, key=size) - 1
    if count < 1 or (wanted is not None and count * block_size < wanted):
        raise ValueError(
            f"a context of {longest} tokens needs {needed / 2**20:.0f} MiB of KV cache, but {budget / 2**20:.0f} MiB "
            "are to be used; lower max_model_len or raise kv_cache_memory"
        )
    context = min(longest, count * block_size)
    return CacheSize(max_model_len=context, num_blocks=blocks(min(count, max_num_seqs * -(-context // block_size))))
