"""The shapes that paged_attention is tested, compiled and measured on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend, KernelCase, Program, Search
from pallas_kernels.paged_attention import tpu, triton
from pallas_kernels.paged_attention.attention import paged_attention
from pallas_kernels.paged_attention.codes import QuantizedKV
from pallas_kernels.paged_attention.config import NAME, AttentionOptions, Shape, TritonConfig, triton_candidates
from pallas_kernels.paged_attention.pool import pool_shape, quantized_pool
from pallas_kernels.paged_attention.softmax import operand_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCase(KernelCase):
    """A layer's heads and options, and for each sequence its positions before the batch and its tokens in it.

    `label` tells cases of equal shapes apart. `pages`: width of the block table, None for what the longest context
    takes; `padding`: tokens behind the last sequence.
    """

    label: str
    heads: int
    kv_heads: int
    head_dim: int
    sequences: tuple[tuple[int, int], ...]
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: str = "bfloat16"
    pool_dtype: str = "bfloat16"
    block_size: int = 64
    pages: int | None = None
    padding: int = 0

    @property
    def name(self) -> str:
        """Such as `attention decode 32/8x128, 8x1 at 4096`: heads, of keys, their channels; sequences, tokens of each,
        longest context."""
        heads = f"{self.heads}/{self.kv_heads}x{self.head_dim}"
        new = "+".join(str(n) for n in sorted({n for _, n in self.sequences}))
        return f"attention {self.label} {heads}, {len(self.sequences)}x{new} at {max(self.contexts)}"

    @property
    def backends(self) -> tuple[Backend, ...]:
        """TPUs cannot load float16."""
        return ("triton",) if self.pool_dtype == "float16" else ("triton", "tpu")

    @property
    def options(self) -> AttentionOptions:
        """The static part."""
        return AttentionOptions(scale=self.head_dim**-0.5, window=self.window, softcap=self.softcap)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Positions of each sequence after the batch."""
        return tuple(before + new for before, new in self.sequences)

    @property
    def table_width(self) -> int:
        """Blocks that a row of the block table names."""
        return self.pages or -(-max(self.contexts) // self.block_size)

    @property
    def tokens(self) -> int:
        """Tokens of the batch, padding included."""
        return sum(new for _, new in self.sequences) + self.padding

    def search(self, backend: Backend) -> Search | None:
        """Block sizes of CUDA's kernel for the shape; those of a TPU follow from it."""
        if backend == "tpu":
            return None
        codes = self.pool(1)
        rows = codes.codes if isinstance(codes, QuantizedKV) else codes
        shape = Shape(
            tokens=self.tokens,
            sequences=len(self.sequences),
            heads=self.heads,
            kv_heads=self.kv_heads,
            width=rows.shape[3] // 2,
            block_size=self.block_size,
            pages=self.table_width,
            scaled=isinstance(codes, QuantizedKV),
            itemsize=operand_dtype(jnp.dtype(self.dtype), rows.dtype).itemsize,
        )
        return Search(
            kernel=NAME,
            format=rows.dtype.name,
            sizes=shape.sizes,
            candidates=triton_candidates(shape),
            program=functools.partial(self._program, backend),
            derived=("splits",),
        )

    def program(self, backend: Backend) -> Program:
        """Attention of q over a pool of twice the blocks that the contexts take."""
        return self._program(backend, None)

    def _program(self, backend: Backend, config: TritonConfig | None, *, interpret: bool = False) -> Program:
        count, blocks = len(self.sequences), 2 * sum(-(-n // self.block_size) for n in self.contexts)
        integers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in self._integer_shapes(count)]
        q = jax.ShapeDtypeStruct((self.tokens, self.heads, self.head_dim), jnp.dtype(self.dtype))
        pool = self.pool(blocks)
        sinks = jax.ShapeDtypeStruct((self.heads,), jnp.float32) if self.sinks else None
        read = sum(
            min(n, (self.window or n) + new - 1) for n, (_, new) in zip(self.contexts, self.sequences, strict=True)
        )
        return Program(
            function=attend(self.options, backend, config, interpret=interpret),
            operands=(q, pool, tuple(integers), sinks),
            entry=triton.ENTRY if backend == "triton" else tpu.ENTRY,
            bytes_moved=read * _bytes(self.pool(1)) // self.block_size + 2 * _bytes(q),
            flops=4 * self.heads * self.head_dim * sum(self._scores(*one) for one in self.sequences),
        )

    def pool(self, blocks: int) -> Any:
        """The shapes of a pool of so many blocks; `pool_dtype` int8 stands for one of 8 bits."""
        sizes = (blocks, self.block_size, self.kv_heads, self.head_dim)
        if self.pool_dtype == "int8":
            return quantized_pool(*sizes)
        return jax.ShapeDtypeStruct(pool_shape(*sizes), jnp.dtype(self.pool_dtype))

    def _integer_shapes(self, sequences: int) -> tuple[tuple[int, ...], ...]:
        return ((self.tokens,), (sequences + 1,), (sequences, self.table_width))

    def _scores(self, before: int, new: int) -> int:
        """Pairs of a token and a position that it sees."""
        window = self.window or before + new
        return sum(min(before + i + 1, window) for i in range(new))


def attend(
    options: AttentionOptions, backend: Backend, config: TritonConfig | None = None, *, interpret: bool = False
) -> Callable[..., jax.Array]:
    """The attention as a function of arrays."""

    given: Any = {"backend": backend, "config": config, "interpret": interpret}

    def run(q: jax.Array, pool: Any, batch: Any, sinks: jax.Array | None) -> jax.Array:
        return paged_attention(q, pool, batch, options, sinks=sinks, **given)

    return run


def _bytes(arrays: Any) -> int:
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(arrays))


_Layer = Mapping[str, Any]


def _small(label: str, **changes: Any) -> AttentionCase:
    """A case that interpretation can run: 7 tokens after 20 positions unless it says otherwise."""
    given: dict[str, Any] = {
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 16,
        "block_size": 16,
        "sequences": ((20, 7),),
        "pages": 4,
    }
    return AttentionCase(**{"label": label, "dtype": "float32", "pool_dtype": "float32", **given, **changes})


_RAGGED = ((3, 1), (0, 37), (61, 5), (0, 0), (16, 16))

_CODES: _Layer = {"pool_dtype": "int8", "block_size": 32}
_CODED = (
    _small("8 bits", sequences=((300, 1), (7, 1)), **_CODES | {"pages": 12}, sinks=True),
    _small("8 bits, window and soft-cap", sequences=((70, 5), (0, 3)), window=20, softcap=1.5, padding=2, **_CODES),
    _small("8 bits, odd heads", heads=9, kv_heads=3, head_dim=64, dtype="bfloat16", **_CODES),
    _small("8 bits, sinks", sinks=True, window=16, heads=16, head_dim=128, dtype="bfloat16", **_CODES),
    _small("8 bits, odd channels", head_dim=12, dtype="float16", pool_dtype="int8", block_size=96, pages=1),
    _small("8 bits, blocks of 384", sequences=((350, 2),), pool_dtype="int8", block_size=384, pages=1),
)

SMALL_CASES: tuple[AttentionCase, ...] = (
    _small("decode", sequences=((40, 1), (0, 1), (63, 1), (15, 1))),
    _small("decode with padding", sequences=((40, 1), (0, 1)), padding=2, sinks=True, window=5),
    _small("split decode", sequences=((300, 1), (7, 1)), pages=24, sinks=True),
    _small(
        "split decode of a window", sequences=((300, 1),), pages=24, window=100, dtype="bfloat16", pool_dtype="bfloat16"
    ),
    _small("verification", sequences=((50, 4), (17, 4)), heads=14),
    _small("prefill", sequences=((0, 50),), heads=3, kv_heads=1, head_dim=64),
    _small("ragged", sequences=_RAGGED, padding=6, pages=5),
    _small("ragged window and soft-cap", sequences=_RAGGED, window=20, softcap=1.5, heads=8, head_dim=32, pages=5),
    _small("window of one", window=1, softcap=2.0),
    _small("sinks", sinks=True, window=16, heads=16, head_dim=64),
    _small("odd channels", head_dim=12),
    _small("80 channels", head_dim=80, heads=4, kv_heads=4),
    _small("96 channels", head_dim=96, dtype="bfloat16", pool_dtype="bfloat16"),
    _small("128 channels", head_dim=128, dtype="bfloat16", pool_dtype="bfloat16"),
    _small("256 channels", head_dim=256, heads=4, kv_heads=1, block_size=32, pages=2),
    _small("blocks of 48", block_size=48, pages=1),
    _small("half floats", pool_dtype="float16", dtype="float16"),
    _small("mixed types", pool_dtype="bfloat16"),
    *_CODED,
)
"""What interpretation can run."""

_LLAMA_8B: _Layer = {"heads": 32, "kv_heads": 8, "head_dim": 128, "pages": 128}
_SMOLLM2: _Layer = {"heads": 9, "kv_heads": 3, "head_dim": 64, "pages": 128}
_GEMMA_2: _Layer = {
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 256,
    "window": 4096,
    "softcap": 50.0,
    "pages": 128,
}
_GEMMA_3: _Layer = {"heads": 4, "kv_heads": 1, "head_dim": 256, "window": 512, "pages": 128}
_GPT_OSS: _Layer = {"heads": 64, "kv_heads": 8, "head_dim": 64, "window": 128, "sinks": True, "pages": 128}
_PHI_3: _Layer = {"heads": 32, "kv_heads": 32, "head_dim": 96, "pages": 64}
_PHI_2: _Layer = {"heads": 32, "kv_heads": 32, "head_dim": 80, "pages": 32}
_EIGHT_BITS: _Layer = {"pool_dtype": "int8"}
_LAYERS = (_LLAMA_8B, _SMOLLM2, _GEMMA_2, _GEMMA_3, _GPT_OSS, _PHI_3, _PHI_2)

# The layers of models that matter: heads that share keys by 1 to 8, odd numbers of them too, every size of a head.
CASES: tuple[AttentionCase, ...] = (
    *(AttentionCase(label="decode", sequences=((2000, 1),) * 4, **layer) for layer in _LAYERS),
    *(AttentionCase(label="prefill", sequences=((1024, 512),), **layer) for layer in _LAYERS),
    AttentionCase(label="decode", sequences=((4000, 1),), **_LLAMA_8B),
    AttentionCase(label="decode", sequences=((4000, 1),) * 64, **_LLAMA_8B),
    AttentionCase(label="verification", sequences=((2000, 5),) * 8, **_LLAMA_8B),
    AttentionCase(label="mixed", sequences=((2000, 1),) * 15 + ((512, 241),), **_LLAMA_8B),
    AttentionCase(
        label="float32 decode", sequences=((2000, 1),) * 4, dtype="float32", pool_dtype="float32", **_LLAMA_8B
    ),
    *(AttentionCase(label="8-bit decode", sequences=((2000, 1),) * 4, **_EIGHT_BITS, **layer) for layer in _LAYERS),
    AttentionCase(label="8-bit prefill", sequences=((1024, 512),), **_EIGHT_BITS, **_LLAMA_8B),
    AttentionCase(label="8-bit decode", sequences=((4000, 1),) * 64, **_EIGHT_BITS, **_LLAMA_8B),
    AttentionCase(label="8-bit verification", sequences=((2000, 5),) * 8, **_EIGHT_BITS, **_LLAMA_8B),
    AttentionCase(label="float16 decode", sequences=((2000, 1),) * 4, pool_dtype="float16", **_LLAMA_8B),
)
