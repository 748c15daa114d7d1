"""Models known by their headers alone: files with every tensor's type and shape, and a hole in place of the data."""

from __future__ import annotations

import collections
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf as gguf_package
import numpy as np

from realm_jax import gguf
from realm_jax.gguf import GGMLType, GGUFFile

SHAPES = Path(__file__).parents[1] / "data" / "aot"

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]
"""Name, type and shape, rows before columns."""


def open_without_data(name: str, folder: Path, layers: int | None = None) -> GGUFFile:
    """The model `name` of `MODELS` as a sparse file in `folder`; whoever reads its tensors reads zeros.

    With `layers`, only the first of its layers.
    """
    metadata, tensors = MODELS[name]()
    if layers is not None:
        metadata = {**metadata, f"{metadata['general.architecture']}.block_count": layers}
        tensors = (tensor for tensor in tensors if (_layer(tensor[0]) or 0) < layers)
    path = folder / f"{name}.gguf"
    writer = gguf_package.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _ADD[type(value)](writer, key, value)
    total = 0
    for tensor, kind, shape in tensors:
        ggml_type = GGMLType[kind]
        size = math.prod(shape) // ggml_type.block_size * ggml_type.type_size
        # The package takes the shape in bytes where a type is quantised.
        in_bytes = (*shape[:-1], shape[-1] // ggml_type.block_size * ggml_type.type_size)
        stored, dtype = (shape, np.float32) if kind == "F32" else (in_bytes, np.uint8)
        raw_dtype = gguf_package.GGMLQuantizationType[kind]
        writer.add_tensor_info(tensor, stored, np.dtype(dtype), size, raw_dtype=raw_dtype)
        total += math.ceil(size / writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = math.ceil(path.stat().st_size / writer.data_alignment) * writer.data_alignment
    with path.open("r+b") as file:
        file.truncate(header + total)
    return gguf.open(path)


def layers_that_fit(file: GGUFFile, memory: float) -> int | None:
    """How many of a model's layers take so many bytes at most; None: it fits whole."""
    sizes = collections.Counter[int | None]()
    for tensor in file.tensors.values():
        sizes[_layer(tensor.name)] += tensor.nbytes
    if sizes.total() <= memory:
        return None
    outside = sizes.pop(None)
    return int((memory - outside) // max(sizes.values()))


def _layer(name: str) -> int | None:
    """The layer of a tensor."""
    return int(name.split(".")[1]) if name.startswith("blk.") else None


def record(path: str) -> dict[str, Any]:
    """What `open_without_data` needs of a real file, without its vocabulary."""
    file = gguf.open(path)
    metadata = {
        key: value
        for key, value in file.metadata.items()
        if key.startswith(("general.architecture", f"{file.architecture}.")) and isinstance(value, int | float | str)
    }
    return {"metadata": metadata, "tensors": [[t.name, t.ggml_type.name, t.shape] for t in file.tensors.values()]}


def _recorded(name: str) -> Callable[[], tuple[dict[str, Any], Tensors]]:
    def read() -> tuple[dict[str, Any], Tensors]:
        stored = json.loads((SHAPES / f"{name}.json").read_text())
        return stored["metadata"], ((tensor, kind, tuple(shape)) for tensor, kind, shape in stored["tensors"])

    return read


def _llama_3_8b() -> tuple[dict[str, Any], Tensors]:
    """Llama 3 8B in the mix Q4_K_M: Q6_K for the head, and for v and down in layers that llama.cpp gives more."""
    layers, hidden, inner, kv, vocab = 32, 4096, 14336, 1024, 128256
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 8192,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 128,
        "llama.vocab_size": vocab,
    }

    def tensors() -> Tensors:
        yield "token_embd.weight", "Q4_K", (vocab, hidden)
        yield "output_norm.weight", "F32", (hidden,)
        yield "output.weight", "Q6_K", (vocab, hidden)
        for i in range(layers):
            more = _given_more(i, layers)
            for name in ("attn_norm", "ffn_norm"):
                yield f"blk.{i}.{name}.weight", "F32", (hidden,)
            for name, kind, shape in (
                ("attn_q", "Q4_K", (hidden, hidden)),
                ("attn_k", "Q4_K", (kv, hidden)),
                ("attn_v", more, (kv, hidden)),
                ("attn_output", "Q4_K", (hidden, hidden)),
                ("ffn_gate", "Q4_K", (inner, hidden)),
                ("ffn_up", "Q4_K", (inner, hidden)),
                ("ffn_down", more, (hidden, inner)),
            ):
                yield f"blk.{i}.{name}.weight", kind, shape

    return metadata, tensors()


def _qwen3_30b_a3b() -> tuple[dict[str, Any], Tensors]:
    """Qwen3 30B A3B in the mix Q4_K_M: 8 of 128 experts a token; routers stay in float32."""
    layers, hidden, inner, experts, vocab = 48, 2048, 768, 128, 151936
    queries, kv, head = 4096, 512, 128
    metadata = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": layers,
        "qwen3moe.context_length": 32768,
        "qwen3moe.embedding_length": hidden,
        "qwen3moe.feed_forward_length": 6144,
        "qwen3moe.expert_feed_forward_length": inner,
        "qwen3moe.expert_count": experts,
        "qwen3moe.expert_used_count": 8,
        "qwen3moe.attention.head_count": queries // head,
        "qwen3moe.attention.head_count_kv": kv // head,
        "qwen3moe.attention.key_length": head,
        "qwen3moe.attention.value_length": head,
        "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3moe.rope.freq_base": 1000000.0,
        "qwen3moe.vocab_size": vocab,
    }

    def tensors() -> Tensors:
        yield "token_embd.weight", "Q4_K", (vocab, hidden)
        yield "output_norm.weight", "F32", (hidden,)
        yield "output.weight", "Q6_K", (vocab, hidden)
        for i in range(layers):
            more = _given_more(i, layers)
            for name, kind, shape in (
                ("attn_norm", "F32", (hidden,)),
                ("ffn_norm", "F32", (hidden,)),
                ("attn_q_norm", "F32", (head,)),
                ("attn_k_norm", "F32", (head,)),
                ("attn_q", "Q4_K", (queries, hidden)),
                ("attn_k", "Q4_K", (kv, hidden)),
                ("attn_v", more, (kv, hidden)),
                ("attn_output", "Q4_K", (hidden, queries)),
                ("ffn_gate_inp", "F32", (experts, hidden)),
                ("ffn_gate_exps", "Q4_K", (experts, inner, hidden)),
                ("ffn_up_exps", "Q4_K", (experts, inner, hidden)),
                ("ffn_down_exps", more, (experts, hidden, inner)),
            ):
                yield f"blk.{i}.{name}.weight", kind, shape

    return metadata, tensors()


def _given_more(layer: int, layers: int) -> str:
    """The type of v and down in a mix Q4_K_M: more bits in an eighth of the layers at each end and a third between."""
    eighth = layers // 8
    return "Q6_K" if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2 else "Q4_K"


MODELS: Mapping[str, Callable[[], tuple[dict[str, Any], Tensors]]] = MappingProxyType(
    {
        "smollm2-135m-q4_1": _recorded("smollm2-135m-q4_1"),
        "gemma3-270m-q4_k_m": _recorded("gemma3-270m-q4_k_m"),
        "llama-3-8b-q4_k_m": _llama_3_8b,
        "qwen3-30b-a3b-q4_k_m": _qwen3_30b_a3b,
    }
)

_ADD: Mapping[type, Callable[..., None]] = MappingProxyType(
    {
        int: gguf_package.GGUFWriter.add_uint32,
        float: gguf_package.GGUFWriter.add_float32,
        str: gguf_package.GGUFWriter.add_string,
        bool: gguf_package.GGUFWriter.add_bool,
    }
)


if __name__ == "__main__":
    json.dump(record(sys.argv[1]), sys.stdout)
