"""Inputs of products with quantised weights, and the bound of a kernel's error against the exact product."""

from __future__ import annotations

import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from quant.block_cases import random_blocks

import pallas_kernels.quantized_matmul as kernels
from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.blocks import read_groups
from pallas_kernels.quantized_matmul.layouts import Stored
from realm_jax.gguf import GGMLType

BFLOAT16, HALF, FLOAT32 = 2.0**-8, 2.0**-11, 2.0**-24  # half a unit in the last place, relative


def blocks_of(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random blocks whose scales are of the sizes that real weights have."""
    rng = np.random.default_rng(rows + columns)
    ggml_type = GGMLType[kind]
    if kind in ("IQ4_XS", "MXFP4", "NVFP4", "IQ4_NL"):
        blocks = random_blocks(ggml_type, rows * columns // ggml_type.block_size)
        if kind == "MXFP4":
            blocks[:, 0] = blocks[:, 0] % 16 + 110
        elif kind != "NVFP4":
            blocks[:, :2] = rng.normal(size=len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
        return blocks.reshape(rows, -1)
    if ggml_type.block_size == 32:
        values = rng.normal(size=(rows, columns)).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = random_blocks(ggml_type, rows * columns // ggml_type.block_size)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]
    for at in halves:
        scales = rng.normal(size=len(blocks)).astype("<f2") * np.float16(0.01)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).astype(np.float64)


def stored_case(kind: str, rows: int, columns: int, backend: Backend) -> tuple[np.ndarray, Stored]:
    blocks = blocks_of(kind, rows, columns)
    return blocks, tuple(jnp.asarray(part) for part in kernels.pack(kind, blocks, columns, backend))


def magnitudes(kind: str, blocks: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `scale v(code)` and of the offset, `[rows, columns]` each."""
    offsets = scales_and_offsets(kind, blocks)[1]
    return np.abs(weights - offsets), np.abs(offsets)


def scales_and_offsets(kind: str, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each weight, `float64[rows, columns]`."""
    read, form = read_groups(kind, blocks), kernels.FORMATS[kind]
    scales = read.scales.astype(np.float64)
    offsets = np.zeros_like(scales) if read.offsets is None else read.offsets.astype(np.float64)
    if read.supers is not None:
        scales, offsets = (np.repeat(part, 16, axis=-1) for part in (scales, offsets))
        own = read.supers.astype(np.float64)
        scales = scales * (own % 16 if form.offset else own - 32)
        offsets = offsets * (own // 16)
    return np.repeat(scales, form.group, axis=-1), np.repeat(offsets, form.group, axis=-1)


def activations(tokens: int, columns: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(tokens).normal(size=(tokens, columns)), jnp.bfloat16)


def multiply_interpreted(
    x: jax.Array, stored: Stored, kind: str, shape: tuple[int, int], backend: Backend
) -> jax.Array:
    """The product by a kernel's interpretation. What compiles fast runs long enough."""
    multiply = functools.partial(kernels.quantized_matmul, kind=kind, shape=shape, backend=backend, interpret=True)
    return jax.jit(multiply, compiler_options={"xla_llvm_disable_expensive_passes": True})(x, stored)


def rounding(kind: str, backend: Backend, tokens: int, blocks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far a product with each weight may be off, per unit of its activation, `[rows, columns]`."""
    scaled, offsets = magnitudes(kind, blocks, weights)
    columns = weights.shape[1]
    form = kernels.FORMATS[kind]
    if tokens <= 16 and (backend == "triton" or form.exact_on_tpu):
        # Exact products of codes, which still hold their bias of 128; sums of as many terms as columns.
        scales = np.abs(scales_and_offsets(kind, blocks)[0])
        return columns * FLOAT32 * (scaled + offsets + 2 * (128 + form.zero) * scales)
    # The weight rounded to bfloat16, on CUDA with its scale and offset rounded before that; one percent for
    # the products of such errors.
    narrow = np.abs(weights) if backend == "tpu" else np.abs(weights) + scaled + offsets
    return 1.01 * BFLOAT16 * narrow + columns * FLOAT32 * (scaled + offsets)


def product(kind: str, backend: Backend, x: jax.Array, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact product with what the layout keeps, and the bound of a kernel's error."""
    rows, columns = len(blocks), x.shape[1]
    stored = tuple(jnp.asarray(part) for part in kernels.pack(kind, blocks, columns, backend))
    weights = np.asarray(kernels.unpack(stored, kind, (rows, columns), backend), np.float64)
    wide = np.asarray(x, np.float64)
    exact = wide @ weights.T
    bound = np.abs(wide) @ rounding(kind, backend, len(x), blocks, weights).T
    if x.dtype == jnp.bfloat16:
        bound += BFLOAT16 * (np.abs(exact) + bound)
    else:
        # Two bfloat16 hold a float32 to 2^-16, and the sum of their products is rounded once.
        bound = 2 * bound + 2.0**-16 * np.abs(wide) @ np.abs(weights).T + FLOAT32 * np.abs(exact)
    return exact, bound


def assert_close(kind: str, backend: Backend, x: jax.Array, blocks: np.ndarray, y: jax.Array) -> None:
    """A product within its bound."""
    exact, bound = product(kind, backend, x, blocks)
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), bound + 1e-30)
