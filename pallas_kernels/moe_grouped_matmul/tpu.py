"""The TPU kernels: those of quantized_matmul, on the parts of a weight that a table of experts chooses beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float, Float32

from pallas_kernels.quantized_matmul import tpu, tpu_decode
from pallas_kernels.quantized_matmul.config import TpuConfig
from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import Stored
from pallas_kernels.quantized_matmul.tpu_decode import DEPTH
from pallas_kernels.routing import Blocks

DECODE_ENTRY = "moe_grouped_matmul_tpu_decode"
PREFILL_ENTRY = "moe_grouped_matmul_tpu_prefill"

# Blocks of rows of activations, of rows and of columns of the weight.
_Grid = tuple[int, int, int]


def decode_matmul(
    x: BFloat16[Array, "rows columns"],
    stored: Stored,
    form: Format,
    blocks: Blocks,
    config: TpuConfig,
    *,
    interpret: bool = False,
) -> Float32[Array, "rows outputs"]:
    """Products of blocks of 8 or 16 rows with exact codes; rows of blocks that are not used stay as they are."""
    grid = _grid(x, stored, config)
    sums = tpu_decode.group_sums(x, form, config)
    of_sums = pl.BlockSpec((1, sums.shape[1], config.tokens, sums.shape[3]), _at(grid, lambda b, e, j, k: (k, 0, b, 0)))
    return pl.pallas_call(
        functools.partial(_decode_kernel, form=form, config=config, steps=grid[2]),
        out_shape=jax.ShapeDtypeStruct((len(x), stored[-1].shape[-1]), jnp.float32),
        grid_spec=_grid_spec(grid, stored, form, config, [of_sums]),
        compiler_params=_IN_ORDER,
        cost_estimate=_cost(x, stored, blocks, 4),
        interpret=interpret,
        name=DECODE_ENTRY,
    )(blocks.owners, blocks.used.reshape(1), x, sums, *_in_place(stored, interpret))


def _decode_kernel(
    experts: Any,
    used: Any,
    x: Any,
    sums: Any,
    scales: Any,
    *refs: Any,
    form: Format,
    config: TpuConfig,
    steps: int,
) -> None:
    block, k = pl.program_id(0), pl.program_id(2)
    rows_of_depth = functools.partial(_spread, x, form.group)

    @pl.when(block < used[0])
    def _() -> None:
        tpu_decode.multiply_step(k, rows_of_depth, sums, scales, *refs, form=form, config=config, steps=steps)


def _spread(x: Any, group: int, depth: int) -> jax.Array:
    """The activations of `DEPTH` columns once for each of their groups, with zeros in the other groups' columns."""
    own = x[:, depth * DEPTH : min((depth + 1) * DEPTH, x.shape[1])].astype(jnp.float32)
    rows = jnp.concatenate([own] * (DEPTH // group), axis=0)
    column, row = (jax.lax.broadcasted_iota(jnp.int32, rows.shape, axis) for axis in (1, 0))
    return jnp.where(column // group == row // own.shape[0], rows, 0.0).astype(x.dtype)


def prefill_matmul(
    x: BFloat16[Array, "rows columns"],
    stored: Stored,
    form: Format,
    blocks: Blocks,
    config: TpuConfig,
    *,
    dtype: Any,
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """The same for blocks of any multiple of 8 rows, with weights decoded in float32 and rounded to bfloat16."""
    grid = _grid(x, stored, config)
    scratch = pltpu.VMEM((config.tokens, config.rows), jnp.float32)
    return pl.pallas_call(
        functools.partial(_prefill_kernel, form=form, config=config, steps=grid[2]),
        out_shape=jax.ShapeDtypeStruct((len(x), stored[-1].shape[-1]), dtype),
        grid_spec=_grid_spec(grid, stored, form, config, [], scratch),
        compiler_params=_IN_ORDER,
        cost_estimate=_cost(x, stored, blocks, jnp.dtype(dtype).itemsize),
        interpret=interpret,
        name=PREFILL_ENTRY,
    )(blocks.owners, blocks.used.reshape(1), x, *_in_place(stored, interpret))


def _prefill_kernel(
    experts: Any, used: Any, x: Any, scales: Any, *refs: Any, form: Format, config: TpuConfig, steps: int
) -> None:
    block, k = pl.program_id(0), pl.program_id(2)

    @pl.when(block < used[0])
    def _() -> None:
        tpu.multiply_step(k, x, scales, *refs, form=form, config=config, steps=steps)


# Blocks that are not used share the place of the last one that is, so no other core may take them.
_IN_ORDER = pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary", "arbitrary"))


def _grid(x: jax.Array, stored: Stored, config: TpuConfig) -> _Grid:
    return len(x) // config.tokens, stored[-1].shape[-1] // config.rows, x.shape[1] // config.columns


def _at(grid: _Grid, choose: Callable[..., Any]) -> Callable[..., Any]:
    """The index map of `choose(block, expert, rows, columns)`.

    Steps behind the last block that is used stay at its end: nothing is copied for them.
    """

    def index(b: jax.Array, j: jax.Array, k: jax.Array, experts: Any, used: Any) -> Any:
        live = b < used[0]
        b = jnp.where(live, b, jnp.maximum(used[0] - 1, 0))
        return choose(b, experts[b], jnp.where(live, j, grid[1] - 1), jnp.where(live, k, grid[2] - 1))

    return index


def _grid_spec(
    grid: _Grid, stored: Stored, form: Format, config: TpuConfig, extra: list[pl.BlockSpec], *scratch: Any
) -> pltpu.PrefetchScalarGridSpec:
    """For operands x, `extra` ones, scales and planes, behind the table of experts and the number of blocks."""
    part = functools.partial(tpu.plane_block, columns=config.columns, whole=grid[2] == 1)
    planes = [
        pl.BlockSpec((None, part(plane.shape[1], bits), config.rows), _at(grid, lambda b, e, j, k: (e, k, j)))
        for plane, bits in zip(stored[:-1], form.planes, strict=True)
    ]
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=grid,
        in_specs=[
            pl.BlockSpec((config.tokens, config.columns), _at(grid, lambda b, e, j, k: (b, k))),
            *extra,
            pl.BlockSpec((None, stored[-1].shape[1], config.rows), _at(grid, lambda b, e, j, k: (e, 0, j))),
            *planes,
        ],
        out_specs=pl.BlockSpec((config.tokens, config.rows), _at(grid, lambda b, e, j, k: (b, j))),
        scratch_shapes=list(scratch),
    )


def _in_place(stored: Stored, interpret: bool) -> Stored:
    """Scales and planes, read from where they lie.

    What fits into vector memory, XLA would else copy there ahead of a kernel: all experts, those of no token too.
    """
    arrays = (stored[-1], *stored[:-1])
    return arrays if interpret else tuple(pltpu.with_memory_space_constraint(array, pltpu.HBM) for array in arrays)


def _cost(x: jax.Array, stored: Stored, blocks: Blocks, itemsize: int) -> pl.CostEstimate:
    """With every block used, each by another expert while there are any."""
    (rows, columns), outputs = x.shape, stored[-1].shape[-1]
    experts = stored[-1].shape[0]
    read = min(blocks.owners.shape[0], experts)
    weights = sum(array.size * array.dtype.itemsize for array in stored) // experts * read
    return pl.CostEstimate(
        flops=2 * rows * columns * outputs,
        bytes_accessed=weights + x.size * x.dtype.itemsize + rows * outputs * itemsize,
        transcendentals=0,
    )
