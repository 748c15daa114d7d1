"""GGUF files: metadata and raw tensors, memory-mapped. Needs numpy alone."""

from realm_jax.gguf.errors import GGUFError
from realm_jax.gguf.file import GGUFFile, holds_header, open
from realm_jax.gguf.tensors import RawTensor
from realm_jax.gguf.types import GGMLType
from realm_jax.gguf.values import StringArray

__all__ = ["GGMLType", "GGUFError", "GGUFFile", "RawTensor", "StringArray", "holds_header", "open"]
