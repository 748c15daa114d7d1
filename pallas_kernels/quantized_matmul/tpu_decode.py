"""The TPU kernel for up to 16 rows of activations: codes go to the matrix unit as they are, and scales meet the sums.

The rows of activations stand once for each group of 128 columns, with zeros in the other groups' columns: one product
of full depth gives every group's sums apart. They take a group's scale each; what offsets, and the bias of the codes,
add is one small product with the sums of the activations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float32

from pallas_kernels.quantized_matmul.config import TpuConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.tpu import BIAS, biased_codes, half, plane_block, rows_of

ENTRY = "quantized_matmul_tpu_decode"
DEPTH = 128


def decode_matmul(
    x: BFloat16[Array, "tokens columns"],
    stored: Stored,
    form: Format,
    config: TpuConfig,
    *,
    interpret: bool = False,
) -> Float32[Array, "tokens rows"]:
    """`x @ unpack(stored).T` for 8 or 16 tokens, of exact codes."""
    tokens, columns = x.shape
    rows, steps = stored[-1].shape[1], columns // config.columns
    spread, sums = _spread_groups(x, form, config), group_sums(x, form, config)
    part = functools.partial(plane_block, columns=config.columns, whole=steps == 1)
    return pl.pallas_call(
        functools.partial(_kernel, form=form, config=config, steps=steps),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), jnp.float32),
        grid=(rows // config.rows, steps),
        in_specs=[
            pl.BlockSpec((1, *spread.shape[1:]), lambda j, k: (k, 0, 0, 0)),
            pl.BlockSpec((1, *sums.shape[1:]), lambda j, k: (k, 0, 0, 0)),
            pl.BlockSpec((stored[-1].shape[0], config.rows), lambda j, k: (0, j)),
            *(
                pl.BlockSpec((part(plane.shape[0], bits), config.rows), lambda j, k: (k, j))
                for plane, bits in zip(stored[:-1], form.planes, strict=True)
            ),
        ],
        out_specs=pl.BlockSpec((tokens, config.rows), lambda j, k: (0, j)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * tokens * columns * rows,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (spread, sums, *stored))
            + 4 * tokens * rows,
            transcendentals=0,
        ),
        interpret=interpret,
        name=ENTRY,
    )(spread, sums, stored[-1], *stored[:-1])


def _spread_groups(x: jax.Array, form: Format, config: TpuConfig) -> jax.Array:
    """`[steps, depths, groups of a depth * tokens, depth]`, zero outside of a row's own group."""
    tokens, columns = x.shape
    steps, own = columns // config.columns, DEPTH // form.group
    depths = math.ceil(config.columns / DEPTH)
    x = jnp.pad(x.reshape(tokens, steps, -1), ((0, 0), (0, 0), (0, depths * DEPTH - config.columns)))
    x = jnp.moveaxis(x.reshape(tokens, steps, depths, 1, own, form.group), 0, 3)
    mask = jnp.eye(own, dtype=x.dtype).reshape(1, 1, own, 1, own, 1)
    return (x.reshape(steps, depths, 1, tokens, own, form.group) * mask).reshape(steps, depths, -1, DEPTH)


def group_sums(x: jax.Array, form: Format, config: TpuConfig) -> jax.Array:
    """Sums of groups, `float32[steps, classes, tokens, groups]`: those that share a word's half form a class."""
    tokens, columns = x.shape
    classes = 1 if form.offset else 2
    sums = jnp.sum(x.reshape(tokens, -1, form.group), axis=-1, dtype=jnp.float32)
    return sums.reshape(tokens, columns // config.columns, -1, classes).transpose(1, 3, 0, 2)


def _kernel(spread: Any, sums: Any, scales: Any, *refs: Any, form: Format, config: TpuConfig, steps: int) -> None:
    def rows_of_depth(depth: int) -> jax.Array:
        return spread[0, depth]

    multiply_step(pl.program_id(1), rows_of_depth, sums, scales, *refs, form=form, config=config, steps=steps)


def multiply_step(
    k: jax.Array,
    rows_of_depth: Callable[[int], jax.Array],
    sums: Any,
    scales: Any,
    *refs: Any,
    form: Format,
    config: TpuConfig,
    steps: int,
) -> None:
    """In a kernel: the k-th of `steps` blocks of columns. `refs` are the planes and the output, in float32.

    `rows_of_depth(i)`: the rows of activations for columns `128 i` and following of the block, once for each group;
    `sums[1, classes, tokens, groups]` those of the activations in each group.
    """
    *planes, out = refs
    groups, tokens = config.columns // form.group, out.shape[0]
    codes = biased_codes([plane[...] for plane in planes], form, config.columns)
    words = rows_of(scales, 0, k, groups if form.offset else groups // 2, steps)
    first, second = half(words, False, form), half(words, True, form)
    classes = [first] if form.offset else [first, second]
    total = jnp.zeros((tokens, config.rows), jnp.float32)
    for depth in range(math.ceil(config.columns / DEPTH)):
        own = codes[depth * DEPTH : (depth + 1) * DEPTH]
        products = jnp.dot(rows_of_depth(depth)[:, : own.shape[0]], own, preferred_element_type=jnp.float32)
        for i in range(own.shape[0] // form.group):
            word, at = divmod(depth * (DEPTH // form.group) + i, len(classes))
            total += products[i * tokens : (i + 1) * tokens] * classes[at][word : word + 1]
    for at, scale in enumerate(classes):
        offset = -(BIAS + form.zero) * scale + (second if form.offset else 0.0)
        total += jnp.dot(sums[0, at], offset, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)

    @pl.when(k == 0)
    def _() -> None:
        out[...] = total

    @pl.when(k > 0)
    def _() -> None:
        out[...] += total
