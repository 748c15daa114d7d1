"""The recorded tiny models: built whole or without one of their features, and run step by step on a paged cache."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf as gguf_package
import jax.numpy as jnp
import numpy as np

from realm_jax import gguf, models
from realm_jax.engine.batch import Buckets, SequenceSlice, pack_batch, unpack_batch
from realm_jax.gguf import GGMLType, GGUFFile, RawTensor
from realm_jax.models import CausalLM, ModelConfig
from realm_jax.nn.weights import Weights
from realm_jax.ops.backends import Implementation, choose_implementation, layout_name
from realm_jax.quant import QTensor, from_raw

__all__ = [
    "BLOCK_SIZE",
    "BOUND",
    "INDEX",
    "MAX_MODEL_LEN",
    "PagedRun",
    "Recording",
    "build_quantised",
    "build_without",
    "chunks",
    "logits_in_chunks",
    "open_tiny",
    "quantised",
    "recording",
    "rewrite",
    "whole",
]

TINY = Path(__file__).parents[1] / "data" / "tiny"
INDEX: Mapping[str, Any] = {model["name"]: model for model in json.loads((TINY / "index.json").read_text())["models"]}

# The largest |difference| as a fraction of the largest |logit|. Transformers itself in float32 differs from the
# recordings, which it computed in float64, by up to 1e-5, and every recorded feature moves them by 2e-2 or more.
BOUND = 2e-4

# The long prompt takes five blocks, and a window nearly always lies in two of them.
MAX_MODEL_LEN, BLOCK_SIZE, NUM_BLOCKS = 128, 16, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What transformers computed for one prompt of a tiny model; `scale` is the largest |logit| of all prompts."""

    file: GGUFFile
    ids: list[int]
    logits: np.ndarray
    scale: float

    @property
    def config(self) -> ModelConfig:
        """The model's configuration for a context of this prompt alone, for which transformers chose rope factors."""
        return models.config_of(self.file, max_model_len=len(self.ids))

    def error(self, logits: np.ndarray) -> float:
        """The largest |difference|, as a fraction of the largest |logit|."""
        assert logits.shape == self.logits.shape
        return float(np.abs(logits - self.logits).max()) / self.scale


@cache
def open_tiny(name: str) -> GGUFFile:
    """The GGUF file of a tiny model."""
    return gguf.open(TINY / f"{name}.gguf")


@cache
def recording(name: str, prompt: str) -> Recording:
    """One prompt, "short" or "long", of a tiny model."""
    arrays = np.load(TINY / f"{name}.npz")
    return Recording(
        file=open_tiny(name),
        ids=arrays[f"{prompt}.ids"].tolist(),
        logits=arrays[f"{prompt}.logits"],
        scale=max(float(np.abs(arrays[key]).max()) for key in ("short.logits", "long.logits")),
    )


@cache
def whole(name: str, prompt: str, implementation: Implementation = "xla") -> CausalLM:
    """A tiny model as the library builds it, for the context of one of its prompts."""
    recorded = recording(name, prompt)
    return models.build(recorded.file, config=recorded.config, implementation=implementation)


def build_without(recorded: Recording, change: Callable[[Any], Any], fill: Mapping[str, float]) -> CausalLM:
    """The model with a changed configuration, and with tensors of its layers replaced by constants.

    Tensors that the changed model does not use are left aside.
    """

    def load(name: str) -> QTensor | None:
        raw = recorded.file.tensors.get(name)
        if raw is None:
            return None
        value = fill.get(name.split(".", 2)[-1])
        return from_raw(raw) if value is None else QTensor(jnp.full(raw.shape, value), GGMLType.F32)

    family = models.FAMILIES[recorded.file.architecture]
    return family.model(Weights(load=load, taken=set()), change(recorded.config), jnp.float32)


def quantised(raw: RawTensor) -> RawTensor:
    """A matrix in Q5_1 where whole blocks fit, else the tensor itself."""
    if raw.ggml_type != GGMLType.F32 or len(raw.shape) < 2 or raw.shape[-1] % 32:
        return raw
    values = raw.data.view(np.float32).reshape(raw.shape)
    stored = gguf_package.quants.quantize(values, gguf_package.GGMLQuantizationType.Q5_1)
    return RawTensor(raw.name, GGMLType.Q5_1, raw.shape, np.ascontiguousarray(stored).reshape(-1))


def build_quantised(name: str, file: GGUFFile, implementation: str) -> CausalLM:
    """The tiny model with quantised matrices, in the implementation's layout."""

    def load(name: str) -> QTensor | None:
        raw = file.tensors.get(name)
        return None if raw is None else from_raw(quantised(raw), layout=layout_name(implementation))

    weights = Weights(load=load, taken=set(), implementation=choose_implementation(implementation))
    return models.FAMILIES[file.architecture].model(weights, recording(name, "short").config, jnp.float32)


class PagedRun:
    """A model and its cache. Steps have the buckets of a Runner, but only the layers are compiled.

    One program serves every layer of every model that has the same form, so that it costs little to run many models.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        spec = model.cache_spec()
        self.cache = [jnp.zeros(a.shape, a.dtype) for a in (s.array(NUM_BLOCKS, BLOCK_SIZE, "float32") for s in spec)]
        groups = 1 + max(layer.group for layer in spec)
        self.buckets = Buckets(max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, groups=groups)

    def step(self, slices: Sequence[SequenceSlice]) -> np.ndarray:
        """The logits of the wanted rows of all slices."""
        shape = self.buckets.shape(slices)
        batch = unpack_batch(jnp.asarray(pack_batch(slices, shape, BLOCK_SIZE)), shape)
        output = self.model(batch, self.cache)
        self.cache = output.cache
        return np.asarray(output.logits)[: sum(len(part.rows) for part in slices)]


def chunks(ids: Sequence[int], size: int, *, first_block: int = 1) -> Iterator[SequenceSlice]:
    """A sequence in steps of `size` tokens, its blocks in falling order, so that position and place differ."""
    blocks = -(-len(ids) // BLOCK_SIZE)
    table = range(first_block + blocks - 1, first_block - 1, -1)
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield SequenceSlice(tokens=part, start=start, block_tables=(table,), rows=range(len(part)))


def logits_in_chunks(model: CausalLM, ids: Sequence[int], size: int) -> np.ndarray:
    """`float32[T, vocab]`: the logits of one sequence, `size` tokens at a step."""
    run = PagedRun(model)
    return np.concatenate([run.step([part]) for part in chunks(ids, size)])


def rewrite(
    source: GGUFFile,
    path: Path,
    *,
    architecture: str | None = None,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    tensors: Mapping[str, np.ndarray | None] = MappingProxyType({}),
) -> GGUFFile:
    """A copy of a float32 file at `path` with other metadata and tensors; None leaves a key or a tensor out."""
    writer = gguf_package.GGUFWriter(path, architecture or source.architecture)
    for key, value in {**source.metadata, **metadata}.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    arrays = {name: raw.data.view(np.float32).reshape(raw.shape) for name, raw in source.tensors.items()}
    for name, array in {**arrays, **tensors}.items():
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.open(path)


def _add(writer: gguf_package.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, np.asarray(value).tolist())
