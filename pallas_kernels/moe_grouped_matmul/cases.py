"""The shapes that moe_grouped_matmul is tested, compiled and measured on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend, KernelCase, Program
from pallas_kernels.moe_grouped_matmul import tpu, triton
from pallas_kernels.moe_grouped_matmul.product import kernel_shape, moe_grouped_matmul
from pallas_kernels.quantized_matmul.config import (
    CUDA_DECODE,
    CUDA_PREFILL,
    TPU_DECODE,
    TPU_PREFILL,
    config_for,
    kernel_for,
    loop_codes,
)
from pallas_kernels.quantized_matmul.layouts import stored_shapes
from pallas_kernels.routing import Blocks, block_rows, number_of_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedCase(KernelCase):
    """`tokens` of activations, each times `choices` of `experts` matrices `[rows, columns]` of the format `kind`."""

    kind: str
    tokens: int
    choices: int
    experts: int
    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Such as `moe Q4_K 1x8 of 128x768x2048`: tokens, choices of each; experts, their rows and columns."""
        return f"moe {self.kind} {self.tokens}x{self.choices} of {self.experts}x{self.rows}x{self.columns}"

    @property
    def block(self) -> int:
        """Rows of a block."""
        return block_rows(self.tokens * self.choices, self.experts)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return number_of_blocks(self.tokens * self.choices, self.experts, self.block)

    def program(self, backend: Backend) -> Program:
        """The products of bfloat16 activations, routed already, with the weights in the backend's layout."""
        stored = stored_shapes(self.kind, (self.experts, self.rows, self.columns), backend)
        x = jax.ShapeDtypeStruct((self.blocks * self.block, self.columns), jnp.bfloat16)
        blocks = Blocks(
            owners=jax.ShapeDtypeStruct((self.blocks,), jnp.int32), used=jax.ShapeDtypeStruct((), jnp.int32)
        )
        entry, codes = self._loop(backend)
        read, pairs = min(self.experts, self.tokens * self.choices), self.tokens * self.choices
        weights = sum(math.prod(array.shape) * array.dtype.itemsize for array in stored) // self.experts * read
        return Program(
            function=multiply(self.kind, (self.rows, self.columns), backend),
            operands=(x, stored, blocks),
            entry=entry,
            loop_codes=codes,
            codes=read * self.rows * self.columns,
            bytes_moved=weights + 2 * pairs * (self.rows + self.columns),
            flops=2 * pairs * self.rows * self.columns,
        )

    def _loop(self, backend: Backend) -> tuple[str, int | None]:
        """The kernel's name, and `loop_codes`; block sizes are those of quantized_matmul."""
        outputs = stored_shapes(self.kind, (self.rows, self.columns), backend)[-1].shape[1]
        shape = kernel_shape(self.kind, self.block, self.blocks, outputs, self.columns)
        kernel, config = kernel_for(shape, backend), config_for(shape, backend)
        entries = {
            TPU_DECODE: tpu.DECODE_ENTRY,
            TPU_PREFILL: tpu.PREFILL_ENTRY,
            CUDA_DECODE: triton.DECODE_ENTRY,
            CUDA_PREFILL: triton.PREFILL_ENTRY,
        }
        return entries[kernel], loop_codes(shape, config)


def multiply(kind: str, matrix: tuple[int, int], backend: Backend) -> Callable[..., jax.Array]:
    """The products as a function of activations, stored arrays and blocks."""
    return lambda x, stored, blocks: moe_grouped_matmul(x, stored, kind, matrix, blocks, backend=backend)


SMALL_CASES: tuple[GroupedCase, ...] = (
    *(
        GroupedCase(kind=kind, tokens=3, choices=2, experts=4, rows=37, columns=256)
        for kind in ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "Q3_K", "MXFP4")
    ),
    *(
        GroupedCase(kind=kind, tokens=35, choices=2, experts=4, rows=37, columns=256)
        for kind in ("Q4_K", "Q6_K", "MXFP4")
    ),
    GroupedCase(kind="Q5_0", tokens=17, choices=2, experts=3, rows=40, columns=1280),
)
"""What interpretation can run: blocks of 8, 16 and 32 rows."""

# Gate or up, and down, of the models that matter, in the types that their mixes give them.
_QWEN3_30B_A3B = (("Q4_K", 768, 2048), ("Q4_K", 2048, 768), ("Q6_K", 2048, 768))
_GPT_OSS_20B = (("MXFP4", 2880, 2880),)
_MIXTRAL_8X7B = (("Q4_K", 14336, 4096), ("Q6_K", 4096, 14336))

CASES: tuple[GroupedCase, ...] = tuple(
    GroupedCase(kind=kind, tokens=tokens, choices=choices, experts=experts, rows=rows, columns=columns)
    for choices, experts, shapes in ((8, 128, _QWEN3_30B_A3B), (4, 32, _GPT_OSS_20B), (2, 8, _MIXTRAL_8X7B))
    for kind, rows, columns in shapes
    for tokens in (1, 16, 512)
)
