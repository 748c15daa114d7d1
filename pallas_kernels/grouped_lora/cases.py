"""The shapes that grouped_lora is tested, compiled and measured on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.case import Backend, KernelCase, Program
from pallas_kernels.grouped_lora import tpu
from pallas_kernels.grouped_lora.config import rows_of
from pallas_kernels.grouped_lora.lora import multiply_routed
from pallas_kernels.grouped_lora.shape import Shape, shape_of
from pallas_kernels.routing import Routing, route_one


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraCase(KernelCase):
    """`tokens` of activations `dtype`, which have the first `active` of `adapters` of a rank, `adapter_dtype`."""

    tokens: int
    active: int
    adapters: int
    rank: int
    outputs: int
    columns: int
    dtype: str = "bfloat16"
    adapter_dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Such as `lora r16 32x8 of 64x4096x4096`: rank; tokens, adapters that they have; of all adapters.

        Their outputs and columns follow, and types other than bfloat16, of the activations and of the adapters.
        """
        sizes = f"{self.tokens}x{self.active} of {self.adapters}x{self.outputs}x{self.columns}"
        plain = (self.dtype, self.adapter_dtype) == ("bfloat16", "bfloat16")
        return f"lora r{self.rank} {sizes}" + ("" if plain else f" {self.dtype} {self.adapter_dtype}")

    @property
    def operands(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of x, a, b, adapter_ids and scale."""
        own = jnp.dtype(self.adapter_dtype)
        return (
            jax.ShapeDtypeStruct((self.tokens, self.columns), jnp.dtype(self.dtype)),
            jax.ShapeDtypeStruct((self.adapters, self.rank, self.columns), own),
            jax.ShapeDtypeStruct((self.adapters, self.outputs, self.rank), own),
            jax.ShapeDtypeStruct((self.tokens,), jnp.int32),
            jax.ShapeDtypeStruct((self.adapters,), jnp.float32),
        )

    def program(self, backend: Backend) -> Program:
        """The products of tokens that are routed already; an active adapter is read once, a token read and written."""
        x, a, b, ids, scale = self.operands
        shape = shape_of(*self.operands)  # type: ignore[arg-type]
        routing = jax.eval_shape(functools.partial(route_one, owners=self.adapters, block=rows_of(shape)), ids)
        adapters = self.active * self.rank * (self.columns + self.outputs) * jnp.dtype(self.adapter_dtype).itemsize
        tokens = self.tokens * (self.columns + self.outputs) * jnp.dtype(self.dtype).itemsize
        return Program(
            function=multiply(shape, backend),
            operands=(x, a, b, scale, routing),
            entry=tpu.ENTRY if backend == "tpu" else "grouped_lora_",
            bytes_moved=adapters + tokens,
            flops=2 * self.tokens * self.rank * (self.columns + self.outputs),
        )


def multiply(shape: Shape, backend: Backend) -> Callable[..., jax.Array]:
    """The products as a function of arrays and of the tokens' routing."""

    def routed(x: Any, a: Any, b: Any, scale: Any, routing: Routing) -> jax.Array:
        return multiply_routed(x, a, b, scale, routing, shape, backend=backend)

    return routed


SMALL_CASES: tuple[LoraCase, ...] = (
    # One token; a rank below a tile's; sizes that no tile divides; several splits of the columns.
    LoraCase(tokens=1, active=1, adapters=2, rank=8, outputs=40, columns=576, adapter_dtype="float32"),
    LoraCase(tokens=5, active=3, adapters=4, rank=16, outputs=130, columns=1024, dtype="float32"),
    LoraCase(tokens=70, active=2, adapters=3, rank=24, outputs=256, columns=200),
    LoraCase(tokens=4, active=4, adapters=4, rank=128, outputs=64, columns=96, dtype="float16"),
    LoraCase(tokens=3, active=2, adapters=9, rank=8, outputs=24, columns=64, dtype="float32", adapter_dtype="float32"),
)
"""What interpretation can run."""

# q or output, k or v, gate or up, and down of Llama 3 8B.
_SQUARE, _NARROW, _TALL, _WIDE = (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)


def _case(rank: int, tokens: int, active: int, matrix: tuple[int, int], **types: str) -> LoraCase:
    outputs, columns = matrix
    return LoraCase(tokens=tokens, active=active, adapters=32, rank=rank, outputs=outputs, columns=columns, **types)


CASES: tuple[LoraCase, ...] = (
    *(_case(16, tokens, active, _SQUARE) for tokens, active in ((1, 1), (32, 32), (32, 4), (2048, 1), (2048, 32))),
    *(_case(16, 32, 32, matrix) for matrix in (_NARROW, _TALL, _WIDE)),
    _case(8, 32, 32, _SQUARE),
    *(_case(rank, tokens, active, _SQUARE) for rank in (64, 128) for tokens, active in ((32, 32), (2048, 1))),
    _case(128, 2048, 1, _WIDE),
    *(_case(16, tokens, 1, _SQUARE, dtype="float32", adapter_dtype="float32") for tokens in (1, 2048)),
    _case(128, 2048, 1, _SQUARE, adapter_dtype="float32"),
)
