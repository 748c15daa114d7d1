"""Inputs of the kernels' cases made on the device: random weights of every format, and pools of keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.case import Backend
from pallas_kernels.paged_attention import QuantizedKV
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul import pack, stored_shapes
from pallas_kernels.quantized_matmul.blocks import BLOCKS

BASE_ROWS = 128
"""Rows of a weight that are drawn and packed; the others repeat them, since packing billions takes minutes."""

# Where a block of a format has half floats.
_HALVES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
        **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q6_K": (208,),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWeight:
    """A weight in a backend's layout, `stored`, whose row r is row `r % BASE_ROWS` of what `blocks` hold."""

    stored: tuple[jax.Array, ...]
    blocks: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomExperts:
    """Weights of experts, `stored[experts, ...]`; expert e is `own[e % len(own)]`."""

    stored: tuple[jax.Array, ...]
    own: tuple[RandomWeight, ...]


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random codes under scales of about a hundredth: `uint8[rows, row_bytes]`.

    Raises:
        ValueError: a format without a rule for its scales.
    """
    if kind not in (*_HALVES, "MXFP4", "NVFP4"):
        raise ValueError(f"format must be one of {', '.join(_HALVES)}, MXFP4 and NVFP4, got {kind}")
    rng = np.random.default_rng([rows + columns, seed])
    per_block, size = BLOCKS[kind]
    blocks = rng.integers(256, size=(rows * columns // per_block, size), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = blocks[:, 0] % 16 + 110  # powers of two from 2^-17 to 2^-2
    elif kind == "NVFP4":
        blocks[:, :4] = blocks[:, :4] & 0x1F | 0x20  # e4m3 from 2^-3 to 2
    for at in _HALVES.get(kind, ()):
        halves = rng.uniform(0.005, 0.015, len(blocks)).astype("<f2")
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def random_weight(kind: str, shape: tuple[int, int], backend: Backend, seed: int = 0) -> RandomWeight:
    """A weight `[rows, columns]` on the device."""
    rows, columns = shape
    blocks = random_blocks(kind, min(rows, BASE_ROWS), columns, seed)
    packed = pack(kind, blocks, columns, backend)
    wanted = stored_shapes(kind, shape, backend)
    stored = tuple(_repeated(jnp.asarray(part), full.shape) for part, full in zip(packed, wanted, strict=True))
    return RandomWeight(stored=stored, blocks=blocks)


def random_experts(kind: str, count: int, shape: tuple[int, int], backend: Backend) -> RandomExperts:
    """As many weights `[rows, columns]` on the device, of which three differ."""
    own = tuple(random_weight(kind, shape, backend, seed) for seed in range(min(count, 3)))
    order = jnp.arange(count) % len(own)
    stored = tuple(jnp.take(jnp.stack(parts), order, axis=0) for parts in zip(*(w.stored for w in own), strict=True))
    return RandomExperts(stored=stored, own=own)


def _repeated(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    for axis, (have, want) in enumerate(zip(part.shape, shape, strict=True)):
        if have != want:
            part = jnp.take(part, jnp.arange(want) % have, axis=axis)
    return part


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """The operands of a case of attention; `batch = (positions, query_start, block_table)`."""

    q: jax.Array
    pool: jax.Array | QuantizedKV
    batch: tuple[jax.Array, jax.Array, jax.Array]
    sinks: jax.Array | None


def attention_inputs(case: AttentionCase) -> AttentionInputs:
    """Random queries, and random keys and values in every block of a pool, which sequences have in random order."""
    keys = jax.random.split(jax.random.key(0), 4)
    rng = np.random.default_rng(0)
    used = [-(-context // case.block_size) for context in case.contexts]
    order, table = rng.permutation(2 * sum(used)), np.zeros((len(used), case.table_width), np.int32)
    for row, (count, end) in enumerate(zip(used, np.cumsum(used), strict=True)):
        table[row, :count] = order[end - count : end]
    positions = np.zeros(case.tokens, np.int32)
    starts = np.cumsum([0, *(new for _, new in case.sequences)]).astype(np.int32)
    for start, (before, new) in zip(starts, case.sequences, strict=False):
        positions[start : start + new] = np.arange(before, before + new)
    sinks = jax.random.normal(keys[3], (case.heads,), jnp.float32) if case.sinks else None
    return AttentionInputs(
        q=jax.random.normal(keys[0], (case.tokens, case.heads, case.head_dim), jnp.float32).astype(case.dtype),
        pool=_random_pool(case.pool(len(order)), keys[1], keys[2]),
        batch=(jnp.asarray(positions), jnp.asarray(starts), jnp.asarray(table)),
        sinks=sinks,
    )


def _random_pool(shapes: Any, key: jax.Array, other: jax.Array) -> jax.Array | QuantizedKV:
    if not isinstance(shapes, QuantizedKV):
        return jax.random.normal(key, shapes.shape, shapes.dtype)
    codes = jax.random.randint(key, shapes.codes.shape, -127, 128, jnp.int8)
    return QuantizedKV(codes=codes, scales=jax.random.uniform(other, shapes.scales.shape, jnp.float32, 0.005, 0.02))
