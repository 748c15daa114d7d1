"""The bytes that a model takes on each device: weights by tensor, KV cache, and how much of it fits."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from realm_jax import quant
from realm_jax.engine.batch import Buckets
from realm_jax.engine.memory import cache_size, group_sizes
from realm_jax.gguf import GGUFFile
from realm_jax.models import LayerCache
from realm_jax.ops import kv_cache_bytes
from realm_jax.ops.attention import split_queries
from realm_jax.sharding import split_counts, split_parts, weight_split

BLOCK_SIZE = 64
"""Positions of a cache block, as `LLM` has them."""
STEP_TOKENS = 512
"""Tokens of a step at most, as `LLM` has them."""
_MOST_SEQUENCES = 2**20
_UNLIMITED = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSize:
    """One tensor of the file: `elements` in all; of its `stored` bytes each device has `bytes`, as one of `parts`.

    `split`: the axis that is cut, "rows", "columns" or "experts"; None where every device has all of it.
    """

    name: str
    shape: tuple[int, ...]
    stored: int
    parts: int
    split: str | None

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes on each device."""
        return self.stored // self.parts

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with activations: not a norm, a bias, a sink or a table of frequencies."""
        return len(self.shape) > 1 and self.name.endswith(".weight")

    @property
    def role(self) -> str:
        """Its name without that of the layer: `attn_q`, `ffn_down`."""
        name = self.name.split(".", 2)[-1] if self.name.startswith("blk.") else self.name
        return name.removesuffix(".weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """The cache of a layer: its `kv_cache_array`, the `parts` that devices have of it, and a decode step's reading.

    `mesh`: the sizes of its axes, of which those that do not split the heads may share the queries.
    """

    spec: LayerCache
    array: Any
    parts: int
    bytes_per_position: int
    mesh: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """The bytes on each device."""
        return kv_cache_bytes(self.array) // self.parts

    def bytes_in_use(self, context: int) -> int:
        """What a sequence of `context` tokens has that its next token may see, on each device."""
        return self.bytes_per_position * self.positions_seen(context) // self.parts

    def positions_seen(self, context: int) -> int:
        """The positions that the last of `context` tokens sees."""
        return context if self.spec.window is None else min(context, self.spec.window)

    def devices_sharing(self, tokens: int) -> int:
        """How many devices that hold the same keys have each a share of the queries of a step's `tokens`."""
        return split_parts(split_queries(self.spec.num_kv_heads, tokens, self.mesh)[1:], self.mesh)

    def sequences_each(self, batch: int) -> int:
        """Of `batch` sequences in a decode step, those whose keys a device reads for its share; the most of any."""
        tokens = Buckets(max_model_len=1, block_size=BLOCK_SIZE, groups=1).decode_rows(batch)
        return min(batch, tokens // self.devices_sharing(tokens))

    def share_read(self, sequences: int, context: int, tokens: int) -> float:
        """The share of the cache's blocks that the last `tokens` of each sequence's `context` see any position of."""
        blocks = math.ceil(context / BLOCK_SIZE)
        if self.spec.window is not None:  # begins inside of a block as a rule
            blocks = min(blocks, math.ceil((self.spec.window + tokens - 1) / BLOCK_SIZE) + 1)
        return min(1.0, sequences * blocks / jax.tree.leaves(self.array)[0].shape[0])


def weight_sizes(file: GGUFFile, layout: str, mesh: Mapping[str, int]) -> tuple[WeightSize, ...]:
    """Every tensor of a file, stored in a layout and split over a mesh of these sizes; nothing but the header is read.

    Vectors are kept in float32, whatever the file has.
    """
    return tuple(_weight_size(name, raw, layout, mesh) for name, raw in file.tensors.items())


def _weight_size(name: str, raw: Any, layout: str, mesh: Mapping[str, int]) -> WeightSize:
    if len(raw.shape) < 2 or not name.endswith(".weight"):
        return WeightSize(name=name, shape=raw.shape, stored=4 * math.prod(raw.shape), parts=1, split=None)
    on_mesh = math.prod(mesh.values()) > 1
    split = weight_split(name, quant.abstract(raw, layout).units, mesh) if on_mesh else (None,) * len(raw.shape)
    counts = split_counts(split, mesh)
    arrays = jax.tree.leaves(quant.stored_shape_dtype(raw, layout, counts))
    cut = next((axis for axis, over in enumerate(split) if over), None)
    axes = ("experts", "rows", "columns")[-len(raw.shape) :]
    return WeightSize(
        name=name,
        shape=raw.shape,
        stored=sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays),
        parts=math.prod(counts),
        split=None if cut is None else axes[cut],
    )


def cache_layers(
    spec: Sequence[LayerCache], mesh: Mapping[str, int], *, context: int, batch: int, dtype: str
) -> tuple[CacheLayer, ...]:
    """The caches that the engine makes for `batch` sequences of up to `context` tokens."""
    size = cache_size(
        trained=context,
        wanted=None,
        groups=group_sizes(spec, BLOCK_SIZE, dtype, ahead=STEP_TOKENS),
        max_num_seqs=batch,
        block_size=BLOCK_SIZE,
        budget=_UNLIMITED,
        at_hand=None,
    )
    layers = []
    for layer in spec:
        array = layer.array(size.num_blocks[layer.group], BLOCK_SIZE, dtype)
        one = layer.array(1, BLOCK_SIZE, dtype)
        layers.append(
            CacheLayer(
                spec=layer,
                array=array,
                parts=split_parts(layer.split(jax.tree.leaves(array)[0].shape, mesh), mesh),
                bytes_per_position=kv_cache_bytes(one) // BLOCK_SIZE,
                mesh=mesh,
            )
        )
    return tuple(layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """The greatest context at the batch, and the greatest batch at the context, that fit; None: not even the least."""

    context: int | None
    batch: int | None


def room(cache_bytes: Callable[[int, int], int], *, context: int, batch: int, trained: int, free: float) -> Room:
    """How far context and batch may grow until `cache_bytes(context, batch)` exceeds the `free` bytes of a device.

    No context is longer than the trained one, unless the wanted one is.
    """
    longest = max(trained, context)
    contexts = bisect.bisect_right(range(1, longest + 1), free, key=lambda length: cache_bytes(length, batch))
    batches = bisect.bisect_right(range(1, _MOST_SEQUENCES + 1), free, key=lambda count: cache_bytes(context, count))
    return Room(context=contexts or None, batch=batches or None)
