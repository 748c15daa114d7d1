"""A model by its shape alone, with random weights: prefill and decode without a file of gigabytes."""

from __future__ import annotations

import dataclasses
import math
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.gpu_inputs import random_weight
from realm_jax import gguf, models
from realm_jax.cli.bench_measure import Case, measure
from realm_jax.engine import Engine, EngineConfig, Runner
from realm_jax.engine.memory import CacheSize
from realm_jax.gguf import GGMLType
from realm_jax.ops import kv_cache_bytes
from realm_jax.ops.backends import Implementation, pallas_backend
from realm_jax.quant import QTensor

_BLOCK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A llama in the mix Q4_K_M: Q6_K for the head, and for v and down in the layers that llama.cpp gives more."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def metadata(self) -> dict[str, str | int | float]:
        """The keys of the file's header."""
        return {
            "general.architecture": "llama",
            "llama.block_count": self.layers,
            "llama.context_length": 8192,
            "llama.embedding_length": self.hidden,
            "llama.feed_forward_length": self.inner,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.kv_heads,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 500000.0,
            "llama.rope.dimension_count": self.hidden // self.heads,
            "llama.vocab_size": self.vocab,
        }

    def tensors(self) -> Iterator[tuple[str, GGMLType, tuple[int, ...]]]:
        """Name, type and shape, rows before columns."""
        kv = self.hidden // self.heads * self.kv_heads
        four, six = GGMLType.Q4_K, GGMLType.Q6_K
        yield "token_embd.weight", four, (self.vocab, self.hidden)
        yield "output_norm.weight", GGMLType.F32, (self.hidden,)
        yield "output.weight", six, (self.vocab, self.hidden)
        eighth = self.layers // 8
        for i in range(self.layers):
            more = six if i < eighth or i >= 7 * eighth or (i - eighth) % 3 == 2 else four
            for name in ("attn_norm", "ffn_norm"):
                yield f"blk.{i}.{name}.weight", GGMLType.F32, (self.hidden,)
            for name, kind, shape in (
                ("attn_q", four, (self.hidden, self.hidden)),
                ("attn_k", four, (kv, self.hidden)),
                ("attn_v", more, (kv, self.hidden)),
                ("attn_output", four, (self.hidden, self.hidden)),
                ("ffn_gate", four, (self.inner, self.hidden)),
                ("ffn_up", four, (self.inner, self.hidden)),
                ("ffn_down", more, (self.hidden, self.inner)),
            ):
                yield f"blk.{i}.{name}.weight", kind, shape


LLAMA_3_8B = Shape(name="Llama-3-8B Q4_K_M", layers=32, hidden=4096, inner=14336, heads=32, kv_heads=8, vocab=128256)
TINY = Shape(name="tiny Q4_K_M", layers=2, hidden=256, inner=256, heads=4, kv_heads=2, vocab=256)

# GGUF's numbers for the types of values that a header has here, and how struct packs them.
_VALUES = {int: (4, "<I"), float: (6, "<f"), str: (8, "")}


def write_header(path: Path, shape: Shape) -> None:
    """Write a GGUF file that ends behind its header.

    | "GGUF" | u32 version 3 | u64 tensors | u64 values | key, u32 type, value | name, u32 axes, u64 each, u32 type,
    u64 offset |; strings are u64 length and bytes, axes run from the columns on.
    """
    tensors, offset = list(shape.tensors()), 0
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(shape.metadata))]
    for key, value in shape.metadata.items():
        kind, form = _VALUES[type(value)]
        packed = _string(value) if isinstance(value, str) else struct.pack(form, value)
        parts += [_string(key), struct.pack("<I", kind), packed]
    for name, kind, axes in tensors:
        size = math.prod(axes) // kind.block_size * kind.type_size
        parts += [_string(name), struct.pack(f"<I{len(axes)}Q", len(axes), *reversed(axes))]
        parts.append(struct.pack("<IQ", kind.value, offset))
        offset += -(-size // 32) * 32
    path.write_bytes(b"".join(parts))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A model with random weights, as `realm_jax.cli.bench_measure` measures it; it shares a shape's weights."""

    config: Any
    runner: Runner
    decode_steps: int

    @property
    def max_model_len(self) -> int:
        """The longest sequence."""
        return self.runner.max_model_len

    def new_engine(self, **changes: Any) -> Engine:
        """An engine of its own over the model's cache."""
        settings: dict[str, Any] = {"decode_steps": self.decode_steps, "max_num_batched_tokens": 512, **changes}
        return Engine(self.runner, EngineConfig(**settings))


def random_model(shape: Shape, implementation: Implementation) -> models.CausalLM:
    """A model of bfloat16 activations in the layout of an implementation's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "header.gguf")
        write_header(path, shape)
        with gguf.open(path, header_only=True) as file:
            abstract = models.build(file, dtype=jnp.bfloat16, implementation=implementation, abstract=True)
    chosen = pallas_backend(implementation)
    assert chosen is not None, "random weights are made in the layouts of Pallas kernels"
    backend = chosen[0]

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, QTensor):
            rows, columns = leaf.shape
            return leaf.with_data(random_weight(leaf.ggml_type.name, (rows, columns), backend).stored)
        return leaf if isinstance(leaf, jax.Array) else jnp.ones(leaf.shape, leaf.dtype)

    graphdef, state = nnx.split(abstract)
    return nnx.merge(graphdef, jax.tree.map(fill, state, is_leaf=lambda leaf: isinstance(leaf, QTensor)))


def measure_model(
    model: models.CausalLM, cases: list[Case], *, kv_cache_dtype: str, repetitions: int
) -> Iterator[dict[str, Any]]:
    """Tokens a second of each case, and the bytes that a decode step at its depth has to read."""
    length, batch = max(case.length for case in cases), max(case.batch for case in cases)
    pages = -(-length // _BLOCK) + 8  # steps that run ahead write behind the end
    size = CacheSize(max_model_len=pages * _BLOCK, num_blocks=(1 + batch * pages,))
    runner = Runner(model, size, block_size=_BLOCK, kv_cache_dtype=kv_cache_dtype)
    random = RandomModel(model.config, runner, decode_steps=min(8, max(case.tokens for case in cases)))
    weights = sum(leaf.nbytes for leaf in runner.leaves)
    position = sum(kv_cache_bytes(layer.array(1, _BLOCK, kv_cache_dtype)) for layer in runner.spec) // _BLOCK
    for case in cases:
        result = measure(random, case, repetitions)
        yield {
            "test": case.test,
            "batch": case.batch,
            "depth": case.depth,
            "kv_cache": kv_cache_dtype,
            "tokens_per_second": result.samples,
            "weight_bytes": weights,
            "step_bytes": weights + case.batch * (case.depth + case.tokens // 2) * position,
        }
