"""The grid of the CUDA kernels for many rows of activations: a block for each tile, a loop over groups of columns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from pallas_kernels.quantized_matmul.config import PrefillConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.triton_rows import WeightRows


def tiled_matmul(
    activations: tuple[Array, ...],
    stored: Stored,
    form: Format,
    config: PrefillConfig,
    multiply: Callable[..., jax.Array],
    *,
    dtype: Any,
    name: str,
    interpret: bool = False,
) -> Array:
    """The product with a stored weight, `dtype[tokens, rows]`, of tiles `float32[rows, tokens]` that `multiply` makes.

    `activations` are an array `[tokens, columns]`, and others `[groups, tokens]` for what its groups have in common.
    `multiply` is given a tile's `WeightRows` and references to its tokens in each of them.
    """
    x, *factors = activations
    (tokens, columns), rows = x.shape, stored[-1].shape[1]
    return pl.pallas_call(
        functools.partial(_kernel, form=form, multiply=multiply),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        grid=(tokens // config.tokens, rows // config.rows),
        in_specs=[
            (
                pl.BlockSpec((config.tokens, columns), lambda i, j: (i, 0)),
                *(pl.BlockSpec((factor.shape[0], config.tokens), lambda i, j: (0, i)) for factor in factors),
            ),
            pl.BlockSpec((stored[-1].shape[0], config.rows), lambda i, j: (0, j)),
            *(pl.BlockSpec((config.rows, plane.shape[1]), lambda i, j: (j, 0)) for plane in stored[:-1]),
        ],
        out_specs=pl.BlockSpec((config.tokens, config.rows), lambda i, j: (i, j)),
        compiler_params=plgpu.CompilerParams(num_warps=config.warps, num_stages=config.stages),
        interpret=interpret,
        name=name,
    )(activations, stored[-1], *stored[:-1])


def _kernel(
    activations: tuple[Any, ...], scales: Any, *refs: Any, form: Format, multiply: Callable[..., jax.Array]
) -> None:
    *planes, out = refs
    weight = WeightRows(form=form, planes=planes, scales=scales)
    out[:, :] = multiply(weight, *activations).T.astype(out.dtype)


def sum_of_groups(
    add: Callable[[jax.Array, jax.Array | int, int], jax.Array], config: PrefillConfig, groups: int
) -> jax.Array:
    """In a kernel: a tile `float32[rows, tokens]` of the products of all groups.

    `add(total, first, count)` is the total with those of `count` groups from `first` on: `config.groups` of them in a
    trip of the loop, and behind it what is left.
    """
    step = config.groups
    total = jnp.zeros((config.rows, config.tokens), jnp.float32)
    total = jax.lax.fori_loop(0, groups // step, lambda i, total: add(total, i * step, step), total)
    if groups % step:
        total = add(total, groups - groups % step, groups % step)
    return total
