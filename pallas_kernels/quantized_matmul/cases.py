"""The shapes that quantized_matmul is tested, compiled and measured on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend, KernelCase, Program
from pallas_kernels.quantized_matmul import tpu, tpu_decode, triton_decode, triton_prefill
from pallas_kernels.quantized_matmul.blocks import BLOCKS
from pallas_kernels.quantized_matmul.config import DECODE_TOKENS, decode_config, tpu_config, tpu_decode_config
from pallas_kernels.quantized_matmul.formats import FORMATS
from pallas_kernels.quantized_matmul.layouts import groups_of, stored_shapes
from pallas_kernels.quantized_matmul.product import padded_tokens, quantized_matmul


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatmulCase(KernelCase):
    """`tokens` rows of activations times a weight `[rows, columns]` of the format `kind`."""

    kind: str
    tokens: int
    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Such as `matmul Q4_K 8x4096x4096`: tokens, rows, columns."""
        return f"matmul {self.kind} {self.tokens}x{self.rows}x{self.columns}"

    def program(self, backend: Backend) -> Program:
        """The product of bfloat16 activations with the weight in the backend's layout."""
        shape = (self.rows, self.columns)
        stored = stored_shapes(self.kind, shape, backend)
        x = jax.ShapeDtypeStruct((self.tokens, self.columns), jnp.bfloat16)
        entry, codes = self._loop(backend)
        weights = sum(math.prod(array.shape) * array.dtype.itemsize for array in stored)
        return Program(
            function=multiply(self.kind, shape, backend),
            operands=(x, stored),
            entry=entry,
            loop_codes=codes,
            codes=self.rows * self.columns,
            bytes_moved=weights + 2 * self.tokens * (self.rows + self.columns),
            flops=2 * self.tokens * self.rows * self.columns,
        )

    def _loop(self, backend: Backend) -> tuple[str, int | None]:
        """The kernel's name, and the codes of a thread in a trip (CUDA's decode kernel) or of a grid step (TPU)."""
        form, tokens = FORMATS[self.kind], padded_tokens(self.tokens)
        stored_rows = stored_shapes(self.kind, (self.rows, self.columns), backend)[-1].shape[1]
        groups = groups_of(form, self.columns)
        if backend == "tpu" and self.tokens <= DECODE_TOKENS and form.exact_on_tpu:
            config = tpu_decode_config(tokens, stored_rows, groups * form.group)
            return tpu_decode.ENTRY, config.rows * config.columns
        if backend == "tpu":
            config = tpu_config(tokens, stored_rows, groups * form.group)
            return tpu.ENTRY, config.rows * config.columns
        if self.tokens <= DECODE_TOKENS:
            config = decode_config(form, stored_rows, groups)
            return triton_decode.ENTRY, config.groups * form.group * config.rows // (32 * config.warps)
        return triton_prefill.ENTRY, None


def multiply(kind: str, shape: tuple[int, int], backend: Backend) -> Callable[..., jax.Array]:
    """The product as a function of activations and stored arrays."""
    return lambda x, stored: quantized_matmul(x, stored, kind, shape, backend=backend)


SMALL_CASES: tuple[MatmulCase, ...] = tuple(
    MatmulCase(kind=kind, tokens=tokens, rows=37, columns=640 if BLOCKS[kind][0] < 256 else 512)
    for kind in FORMATS
    for tokens in (1, 33)
)
"""What interpretation can run: a row takes the smallest tile of the decode kernels, 33 a tile of the others."""

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
    *(MatmulCase(kind=kind, tokens=tokens, rows=4096, columns=4096) for kind in FORMATS for tokens in (1, 16, 512)),
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
)
