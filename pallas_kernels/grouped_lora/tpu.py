"""The TPU kernel: for each block of rows some steps of the grid multiply by A, the next ones their sums by B."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from pallas_kernels.grouped_lora.config import TpuConfig
from pallas_kernels.grouped_lora.dot import dot
from pallas_kernels.routing import Blocks

ENTRY = "grouped_lora_tpu"
_LANES = 128


def multiply(
    x: Float[Array, "rows columns"],
    a: Float[Array, "adapters rank columns"],
    b: Float[Array, "adapters outputs rank"],
    scale: Float32[Array, " adapters"],
    blocks: Blocks,
    config: TpuConfig,
    *,
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """`scale[e] (x[r] A[e]^T) B[e]^T` for the adapter e of each block of rows, in `x.dtype`.

    Rows of blocks that are not used stay as they are. B is taken as XLA stores it where nothing else is asked for: with
    its outputs along the lanes, unless the rank fills them.
    """
    count, (_, outputs, rank) = blocks.owners.shape[0], b.shape
    along_rank = rank % _LANES == 0
    b = b if along_rank else jnp.swapaxes(b, 1, 2)
    shrinks, expands = x.shape[1] // config.columns, outputs // config.outputs

    at = functools.partial(_at, shrinks, expands)
    columns, own = config.columns, config.outputs
    read = min(count, a.shape[0]) * rank * (x.shape[1] + outputs) * a.dtype.itemsize
    return pl.pallas_call(
        functools.partial(_kernel, shrinks=shrinks, axis=int(along_rank)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], outputs), x.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(count, shrinks + expands),
            in_specs=[
                pl.BlockSpec((config.rows, columns), at(lambda block, e, k, n: (block, k))),
                pl.BlockSpec((None, rank, columns), at(lambda block, e, k, n: (e, 0, k))),
                pl.BlockSpec((None, own, rank), at(lambda block, e, k, n: (e, n, 0)))
                if along_rank
                else pl.BlockSpec((None, rank, own), at(lambda block, e, k, n: (e, 0, n))),
            ],
            out_specs=pl.BlockSpec((config.rows, own), at(lambda block, e, k, n: (block, n))),
            scratch_shapes=[pltpu.VMEM((config.rows, rank), jnp.float32)],
        ),
        # Blocks that are not used share the place of the last one that is, so no other core may take them.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * x.shape[0] * rank * (x.shape[1] + outputs),
            bytes_accessed=read + x.shape[0] * (x.shape[1] + outputs) * x.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name=ENTRY,
    )(blocks.owners, blocks.used.reshape(1), scale, x, *_in_place(a, b, interpret=interpret))


def _at(shrinks: int, expands: int, choose: Callable[..., Any]) -> Callable[..., Any]:
    """The index map of `choose(block, adapter, columns, outputs)`.

    Steps behind the last block that is used stay at its end: nothing is copied for them.
    """

    def index(block: jax.Array, step: jax.Array, owners: Any, used: Any, scale: Any) -> Any:
        live = block < used[0]
        block = jnp.where(live, block, jnp.maximum(used[0] - 1, 0))
        step = jnp.where(live, step, shrinks + expands - 1)
        return choose(block, owners[block], jnp.minimum(step, shrinks - 1), jnp.maximum(step - shrinks, 0))

    return index


def _in_place(*arrays: jax.Array, interpret: bool) -> tuple[jax.Array, ...]:
    """Adapters, read from where they lie.

    What fits into vector memory, XLA would else copy there ahead of a kernel: all adapters, those of no token too.
    """
    return arrays if interpret else tuple(pltpu.with_memory_space_constraint(array, pltpu.HBM) for array in arrays)


def _kernel(
    owners: Any, used: Any, scale: Any, x: Any, a: Any, b: Any, out: Any, hidden: Any, *, shrinks: int, axis: int
) -> None:
    block, step = pl.program_id(0), pl.program_id(1)
    live = block < used[0]

    @pl.when(live & (step == 0))
    def _() -> None:
        hidden[...] = jnp.zeros_like(hidden)

    @pl.when(live & (step < shrinks))
    def _() -> None:
        hidden[...] += dot(x[...], a[...])

    @pl.when(live & (step >= shrinks))
    def _() -> None:
        out[...] = dot(hidden[...] * scale[owners[block]], b[...], axis).astype(out.dtype)
