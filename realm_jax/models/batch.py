"""ForwardBatch: the ragged input of one model step, and what a layer's cache must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from realm_jax.nn.decoder import LayerConfig
from realm_jax.ops.kv_cache import kv_cache_array, kv_cache_split
from realm_jax.ops.paging import PagedBatch
from realm_jax.sharding import Split, named_sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache:
    """What one layer keeps of each position: keys and values of `num_kv_heads` heads of `head_dim` channels.

    Layers of one `group` share a block table. `window` None: every position is read for ever. The `implementation`
    decides how the array is laid out.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None = None
    group: int = 0
    implementation: str = "xla"

    @classmethod
    def of(cls, layer: LayerConfig, implementation: str) -> LayerCache:
        """What a layer of this configuration keeps."""
        attention = layer.attention
        return cls(
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            window=attention.window,
            group=layer.group,
            implementation=implementation,
        )

    def split(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> Split:
        """What the axes of a buffer are split over, on a mesh of these sizes."""
        return kv_cache_split(shape, sizes, implementation=self.implementation)

    def shardings(self, array: Any, mesh: Mesh) -> Any:
        """How a buffer of `array`, or each of its arrays, lies on a mesh."""
        return jax.tree.map(lambda leaf: named_sharding(mesh, self.split(leaf.shape, mesh.shape)), array)

    def array(self, num_blocks: int, block_size: int, dtype: str) -> Any:
        """The shape of a buffer of `num_blocks` blocks, for one of `KV_CACHE_DTYPES`; see `kv_cache_array`."""
        heads = (self.num_kv_heads, self.head_dim)
        return kv_cache_array(num_blocks, block_size, heads, dtype=dtype, implementation=self.implementation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """The tokens of one step, of any number of sequences; prefill, decode and verification differ in numbers only.

    `tokens int32[T]` or `input_embeds [T, hidden]`; `positions int32[T]`; `slot_mapping int32[G, T]`; `query_start
    int32[B + 1]`; `context_lens int32[B]`; `block_tables int32[G, B, P]`; `logits_indices int32[L]`: the rows of T
    whose logits are wanted; `edit_ids int32[T]`, where the taps are selective: whose edits concern each token. G
    counts the groups of layers that share a block table.
    """

    tokens: Any
    positions: Any
    slot_mapping: Any
    query_start: Any
    context_lens: Any
    block_tables: Any
    logits_indices: Any
    input_embeds: Any = None
    edit_ids: Any = None

    def paged(self, group: int) -> PagedBatch:
        """The view that the layers of one group take."""
        return PagedBatch(
            positions=self.positions,
            slots=self.slot_mapping[group],
            query_start=self.query_start,
            context_lens=self.context_lens,
            block_table=self.block_tables[group],
        )
