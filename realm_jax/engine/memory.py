"""How much KV cache fits: bytes per position, memory at hand, and the sizes that follow from them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realm_jax.models import LayerCache

_SHARE = 0.25  # of the memory at hand; weights, programs and the user's own arrays need the rest
_USUAL = 2**30  # enough for the usual batch; taking more is slower to allocate and only serves long contexts


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The context that one sequence may reach, in tokens, and the number of cache blocks, block 0 included."""

    max_model_len: int
    num_blocks: int


def bytes_per_position(spec: Sequence[LayerCache], block_size: int, kv_cache_dtype: str) -> int:
    """Bytes that one position of one sequence takes in all layers."""
    blocks = [layer.array(1, block_size, kv_cache_dtype) for layer in spec]
    return sum(math.prod(block.shape) * block.dtype.itemsize for block in blocks) // block_size


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
    per_position: int,
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
    if budget is None:
        share = int(_SHARE * at_hand) if at_hand is not None else _USUAL
        budget = min(share, max(_USUAL, (longest + 2 * block_size) * per_position))
    blocks = budget // (per_position * block_size)
    fitting = (blocks - 1) * block_size
    if fitting < 1 or (wanted is not None and fitting < wanted):
        needed = (longest + 2 * block_size) * per_position
        raise ValueError(
            f"a context of {longest} tokens needs {needed / 2**20:.0f} MiB of KV cache, but {budget / 2**20:.0f} MiB "
            "are to be used; lower max_model_len or raise kv_cache_memory"
        )
    context = min(longest, fitting)
    every_sequence = 1 + max_num_seqs * -(-context // block_size)
    return CacheSize(max_model_len=context, num_blocks=min(blocks, every_sequence))
