"""The shapes that quantized_matmul is tested, compiled and measured on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend, KernelCase, Program, Search
from pallas_kernels.quantized_matmul import tpu, tpu_decode, triton_decode, triton_int8, triton_prefill
from pallas_kernels.quantized_matmul.blocks import BLOCKS
from pallas_kernels.quantized_matmul.candidates import candidates
from pallas_kernels.quantized_matmul.config import (
    CUDA_DECODE,
    CUDA_INT8,
    CUDA_PREFILL,
    DECODE_TOKENS,
    TPU_DECODE,
    TPU_PREFILL,
    Activations,
    Config,
    MatmulShape,
    config_for,
    kernel_for,
    loop_codes,
)
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import stored_shapes
from pallas_kernels.quantized_matmul.product import kernel_shape, quantized_matmul


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatmulCase(KernelCase):
    """`tokens` rows of activations times a weight `[rows, columns]` of the format `kind`."""

    kind: str
    tokens: int
    rows: int
    columns: int
    activations: Activations = "bfloat16"

    @property
    def name(self) -> str:
        """Such as `matmul Q4_K 8x4096x4096`: tokens, rows, columns; with `int8` where activations are rounded."""
        rounded = "" if self.activations == "bfloat16" else f" {self.activations}"
        return f"matmul {self.kind} {self.tokens}x{self.rows}x{self.columns}{rounded}"

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All, but CUDA alone for activations in 8 bits."""
        return ("triton", "tpu") if self.activations == "bfloat16" else ("triton",)

    def search(self, backend: Backend) -> Search:
        """Block sizes of the kernel for the shape."""
        shape = self._kernel_shape(backend)
        return Search(
            kernel=kernel_for(shape, backend).name,
            format=self.kind,
            sizes=shape.sizes,
            candidates=candidates(shape, backend),
            program=functools.partial(self._program, backend),
            derived=("splits",) if kernel_for(shape, backend) is CUDA_DECODE else (),
        )

    def program(self, backend: Backend) -> Program:
        """The product of bfloat16 activations, which it may round, with the weight in the backend's layout."""
        return self._program(backend, None)

    def _program(self, backend: Backend, config: Config | None, *, interpret: bool = False) -> Program:
        stored = stored_shapes(self.kind, (self.rows, self.columns), backend)
        shape = self._kernel_shape(backend)
        weights = sum(math.prod(array.shape) * array.dtype.itemsize for array in stored)
        return Program(
            function=self._multiply(backend, config, interpret),
            operands=(jax.ShapeDtypeStruct((self.tokens, self.columns), jnp.bfloat16), stored),
            entry=_ENTRIES[kernel_for(shape, backend).name],
            loop_codes=loop_codes(shape, config_for(shape, backend, config)),
            codes=self.rows * self.columns,
            bytes_moved=weights + 2 * self.tokens * (self.rows + self.columns),
            flops=2 * self.tokens * self.rows * self.columns,
        )

    def _multiply(self, backend: Backend, config: Config | None, interpret: bool) -> Callable[..., jax.Array]:
        options: Any = {"config": config, "activations": self.activations, "interpret": interpret}
        return multiply(self.kind, (self.rows, self.columns), backend, **options)

    def _kernel_shape(self, backend: Backend) -> MatmulShape:
        return kernel_shape(self.kind, self.tokens, (self.rows, self.columns), backend, self.activations)


# The kernels' names in a compiled program.
_ENTRIES: Mapping[str, str] = MappingProxyType(
    {
        TPU_DECODE.name: tpu_decode.ENTRY,
        TPU_PREFILL.name: tpu.ENTRY,
        CUDA_DECODE.name: triton_decode.ENTRY,
        CUDA_PREFILL.name: triton_prefill.ENTRY,
        CUDA_INT8.name: triton_int8.ENTRY,
    }
)


def multiply(
    kind: str, shape: tuple[int, int], backend: Backend, config: Config | None = None, **others: Any
) -> Callable[..., jax.Array]:
    """The product as a function of activations and stored arrays; `others` are options of `quantized_matmul`."""
    options: Any = {"backend": backend, "config": config, **others}
    return lambda x, stored: quantized_matmul(x, stored, kind, shape, **options)


SMALL_CASES: tuple[MatmulCase, ...] = tuple(
    MatmulCase(kind=kind, tokens=tokens, rows=37, columns=640 if BLOCKS[kind][0] < 256 else 512)
    for kind in FORMATS
    for tokens in (1, 33)
)
"""What interpretation can run: a row takes the smallest tile of the decode kernels, 33 a tile of the others."""

SMALL_INT8_CASES: tuple[MatmulCase, ...] = tuple(
    dataclasses.replace(case, activations="int8")
    for case in SMALL_CASES
    if case.tokens > DECODE_TOKENS and FORMATS[case.kind].takes_int8
)
"""The same with activations in 8 bits."""

_LLAMA_8B = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
_OTHER_SHAPES = (
    ("Q4_1", (576, 576)),
    ("Q4_1", (192, 576)),
    ("Q5_0", (2048, 640)),
    ("Q8_0", (640, 2048)),
    ("Q6_K", (128256, 4096)),
    ("MXFP4", (2880, 2880)),
)

# The shapes that matter, and those of models whose sizes no power of two divides.
CASES: tuple[MatmulCase, ...] = (
    *(MatmulCase(kind=kind, tokens=tokens, rows=4096, columns=4096) for kind in FORMATS for tokens in (1, 8, 16, 512)),
    *(
        MatmulCase(kind="Q4_K", tokens=tokens, rows=rows, columns=columns)
        for rows, columns in _LLAMA_8B[1:]
        for tokens in (8, 512)
    ),
    *(
        MatmulCase(kind=kind, tokens=tokens, rows=rows, columns=columns)
        for kind, (rows, columns) in _OTHER_SHAPES
        for tokens in (8, 64)
    ),
    *(
        MatmulCase(kind=kind, tokens=512, rows=4096, columns=4096, activations="int8")
        for kind in FORMATS
        if FORMATS[kind].takes_int8
    ),
    MatmulCase(kind="Q4_K", tokens=512, rows=14336, columns=4096, activations="int8"),
    MatmulCase(kind="Q4_1", tokens=64, rows=576, columns=576, activations="int8"),
)
