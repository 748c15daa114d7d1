"""Ragged batches over a paged cache, options of attention, and what it is by definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.ops import AttentionSpec, PagedBatch

BLOCK = 16
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8

# Sums of up to 700 float32 products in another order: 700 * 6e-8 relative to values of about 1, and a few exps.
ATOL = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sequences as (tokens already in the cache, new tokens), laid out in shuffled blocks."""

    lengths: tuple[tuple[int, int], ...]
    padding: int = 0

    def build(self, seed: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(seed)
        tokens = sum(new for _, new in self.lengths) + self.padding
        pages = max(-(-(old + new) // BLOCK) for old, new in self.lengths)
        blocks = 1 + rng.permutation(len(self.lengths) * pages)
        tables = blocks.reshape(len(self.lengths), pages)
        cache = rng.normal(size=(len(blocks) + 1, BLOCK, 2, KV_HEADS, HEAD_DIM)).astype(np.float32)
        positions, slots = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
        starts = np.cumsum([0, *(new for _, new in self.lengths)])
        for (old, new), start, table in zip(self.lengths, starts, tables, strict=False):
            at = np.arange(old, old + new)
            positions[start : start + new] = at
            slots[start : start + new] = table[at // BLOCK] * BLOCK + at % BLOCK
        batch = PagedBatch(
            positions=jnp.asarray(positions),
            slots=jnp.asarray(slots),
            query_start=jnp.asarray(starts, jnp.int32),
            context_lens=jnp.asarray([old + new for old, new in self.lengths], jnp.int32),
            block_table=jnp.asarray(tables, jnp.int32),
        )
        q, k, v = (
            jnp.asarray(rng.normal(size=(tokens, n, HEAD_DIM)), jnp.float32) for n in (HEADS, KV_HEADS, KV_HEADS)
        )
        return q, k, v, jnp.asarray(cache), batch


def dense(
    ragged: Ragged, q: np.ndarray, cache: np.ndarray, batch: PagedBatch, spec: AttentionSpec, sinks: np.ndarray | None
) -> np.ndarray:
    """The definition, sequence by sequence and head by head, in float64."""
    out = np.zeros(q.shape)
    flat = np.asarray(cache, np.float64).reshape(-1, 2, KV_HEADS, HEAD_DIM)
    for i, (old, new) in enumerate(ragged.lengths):
        start = int(batch.query_start[i])
        slots = (np.asarray(batch.block_table[i])[:, None] * BLOCK + np.arange(BLOCK)).ravel()[: old + new]
        for token in range(new):
            position = old + token
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            seen = flat[slots[first : position + 1]]
            for head in range(HEADS):
                k, v = seen[:, :, head // (HEADS // KV_HEADS)].swapaxes(0, 1)
                scores = k @ np.asarray(q[start + token, head], np.float64) * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * np.tanh(scores / spec.softcap)
                weights = np.exp(scores)
                total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
                out[start + token, head] = weights @ v / total
    return out


SPECS = {
    "plain": AttentionSpec(scale=0.35),
    "window": AttentionSpec(scale=0.35, window=20),
    "window of one": AttentionSpec(scale=0.35, window=1),
    "softcap": AttentionSpec(scale=0.8, softcap=1.5),
    "window and softcap": AttentionSpec(scale=0.8, window=300, softcap=2.0),
}
BATCHES = {
    "prefill": Ragged(lengths=((0, 70),)),
    "decode": Ragged(lengths=((40, 1), (0, 1), (600, 1), (15, 1))),
    "chunk far into a sequence": Ragged(lengths=((530, 90),)),
    "mixed with padding": Ragged(lengths=((3, 1), (0, 130), (290, 5), (64, 64)), padding=7),
}
