"""grouped_lora's Pallas kernels, interpreted, against the products in float64, and the sizes of their tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.lora_cases import HALVES, assert_close, draw

from pallas_kernels.case import Backend
from pallas_kernels.grouped_lora import Shape, grouped_lora
from pallas_kernels.grouped_lora.cases import CASES, SMALL_CASES, LoraCase
from pallas_kernels.grouped_lora.config import blocks_of, rows_of, tpu_config, triton_config
from pallas_kernels.grouped_lora.dot import halves
from pallas_kernels.routing import route_one

BACKENDS: tuple[Backend, ...] = ("triton", "tpu")
# Products of float32, and of bfloat16 with float32 factors.
FAST = SMALL_CASES[:2]


def shape_of_case(case: LoraCase) -> Shape:
    return Shape(
        tokens=case.tokens,
        adapters=case.adapters,
        rank=case.rank,
        columns=case.columns,
        outputs=case.outputs,
        itemsize=jnp.dtype(case.adapter_dtype).itemsize,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=lambda case: case.name,
)
def test_products_lie_within_the_derived_bound(case: LoraCase, backend: Backend) -> None:
    operands = draw(case)
    # What compiles fast runs long enough.
    options = {"xla_llvm_disable_expensive_passes": True}
    apply = jax.jit(functools.partial(grouped_lora, backend=backend, interpret=True), compiler_options=options)
    y = apply(*operands)
    assert y.dtype == case.dtype
    assert_close(operands, y, kernel=True)


def test_small_cases_reach_every_way_through_the_kernels() -> None:
    shapes = [shape_of_case(case) for case in SMALL_CASES]
    configs = [triton_config(shape) for shape in shapes]
    assert {config.splits > 1 for config in configs} == {True, False}
    assert {shape.columns % config.columns == 0 for shape, config in zip(shapes, configs, strict=True)} == {True, False}
    assert {shape.outputs % config.outputs == 0 for shape, config in zip(shapes, configs, strict=True)} == {True, False}
    assert {config.ranks == shape.rank for shape, config in zip(shapes, configs, strict=True)} == {True, False}
    assert {rows_of(shape) for shape in shapes} == {16, 32}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tiles_keep_a_device_busy_and_fit_into_it(case: LoraCase) -> None:
    shape = shape_of_case(case)
    config, rows = triton_config(shape), rows_of(shape)
    # Three stages of a trip's tiles, in an A100's shared memory.
    assert config.stages * (rows + config.ranks) * config.columns * shape.itemsize <= 163 * 2**10
    assert config.splits * blocks_of(shape) <= 528
    # Tiles of x, A, B and the result, two each and at most of float32, and what lies between A and B: 16 MiB on v5e.
    tiles = tpu_config(shape)
    assert shape.columns % tiles.columns == 0 and shape.outputs % tiles.outputs == 0
    assert 8 * (rows + case.rank) * (tiles.columns + tiles.outputs) + 4 * rows * 128 <= 2**24


def test_float32_is_held_by_two_bfloat16() -> None:
    """Compiled too, where a conversion there and back may be left out."""
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32) * np.exp2(np.arange(4096) % 200 - 100)
    high, low = (np.asarray(part, np.float64) for part in jax.jit(halves)(x))
    np.testing.assert_array_less(np.abs(high + low - x), HALVES * np.abs(x))
    assert np.isnan(np.asarray(sum(halves(jnp.asarray([np.nan, np.inf]))), np.float32)).all()


def test_a_token_takes_a_row_of_its_adapter_or_none() -> None:
    routing = route_one(jnp.asarray([2, 0, -1, 2, 5, 2], jnp.int32), 4, block=2)
    np.testing.assert_array_equal(routing.place[:, 0], [2, 0, len(routing.source), 3, len(routing.source), 4])
    assert routing.blocks.used == 3
    np.testing.assert_array_equal(routing.blocks.owners[:3], [0, 2, 2])
