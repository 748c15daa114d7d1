"""The layout of tiles inside the library: loading, lookup, products, and what it leaves to XLA."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quant.block_cases import random_blocks

import cpu_kernels
from realm_jax import quant
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.nn.moe import ExpertLinear
from realm_jax.nn.weights import Weights
from realm_jax.ops import quantized_matmul
from realm_jax.ops.experts import apply_expert
from realm_jax.quant import QTensor, dequantize, take_rows

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")


def raw_tensor(kind: GGMLType, shape: tuple[int, ...]) -> RawTensor:
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind))
    return RawTensor("w", kind, shape, np.ascontiguousarray(stored).view(np.uint8).reshape(-1))


def activations(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(37, 96), (3, 20, 64)])
def test_tiles_hold_the_same_weight(shape: tuple[int, ...]) -> None:
    raw = raw_tensor(GGMLType.Q5_1, shape)
    blocks, tiles = quant.from_raw(raw), quant.from_raw(raw, layout="cpu")
    assert (tiles.layout, tiles.shape, tiles.ndim) == ("cpu", shape, len(shape))
    np.testing.assert_array_equal(dequantize(tiles), dequantize(blocks))
    described = quant.abstract(raw, "cpu")
    assert jax.tree.structure(described) == jax.tree.structure(tiles)
    assert (described.shape, described.data.shape, described.data.dtype) == (shape, tiles.data.shape, jnp.uint8)
    if len(shape) == 3:
        np.testing.assert_array_equal(dequantize(tiles.with_data(tiles.data[1])), dequantize(blocks)[1])


def test_rows_come_from_either_layout() -> None:
    raw = raw_tensor(GGMLType.Q8_0, (37, 96))
    ids = jnp.array([[5, 0], [36, 99]])
    rows = take_rows(quant.from_raw(raw), ids)
    np.testing.assert_array_equal(take_rows(quant.from_raw(raw, layout="cpu"), ids), rows)
    dense = QTensor(dequantize(quant.from_raw(raw)), GGMLType.F32)
    np.testing.assert_array_equal(take_rows(dense, ids), rows)


def test_both_implementations_multiply_tiles() -> None:
    raw = raw_tensor(GGMLType.Q4_1, (37, 96))
    w, x = quant.from_raw(raw, layout="cpu"), activations(2, 3, 96)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    scale = np.abs(x) @ np.abs(dequantize(w)).T
    # Float32 sums of 96 products.
    np.testing.assert_array_less(np.abs(quantized_matmul(x, w, implementation="xla") - exact), 98 * 2.0**-24 * scale)
    native = quantized_matmul(x, w, implementation="cpu")
    np.testing.assert_array_equal(native, cpu_kernels.quantized_matmul(x, w.data, "Q4_1", (37, 96)))


def test_plain_floats_are_multiplied_as_they_are() -> None:
    raw, x = raw_tensor(GGMLType.F16, (37, 250)), activations(3, 250)
    w, dense = quant.from_raw(raw, layout="cpu"), quant.from_raw(raw)
    assert (w.layout, w.is_dense, dense.is_dense) == ("cpu", False, True)
    exact = np.asarray(x, np.float64) @ np.asarray(dense.data, np.float64).T
    # Float32 sums of 250 products.
    bound = 252 * 2.0**-24 * (np.abs(x) @ np.abs(np.asarray(dense.data, np.float64)).T)
    np.testing.assert_array_less(np.abs(quantized_matmul(x, w, implementation="cpu") - exact), bound)


@pytest.mark.parametrize("kind", [kind for kind in GGMLType if kind.block_size > 1], ids=lambda kind: kind.name)
def test_every_quantised_type_has_tiles_of_the_same_weights(kind: GGMLType) -> None:
    blocks = random_blocks(kind, 20 * 2)
    raw = RawTensor("w", kind, (20, 2 * kind.block_size), blocks.reshape(-1))
    tiles = quant.from_raw(raw, layout="cpu")
    assert tiles.layout == "cpu"
    np.testing.assert_array_equal(jax.jit(dequantize)(tiles), jax.jit(dequantize)(quant.from_raw(raw)))


def test_blocks_are_refused_where_tiles_were_asked_for() -> None:
    w = quant.from_raw(raw_tensor(GGMLType.Q8_0, (16, 64)))
    with pytest.raises(ValueError, match="needs a Q8_0 weight in layout 'cpu', got 'blocks'"):
        quantized_matmul(activations(1, 64), w, implementation="cpu")
    with pytest.raises(ValueError, match="layout must be one of blocks, cpu, triton, tpu, mps, got 'rows'"):
        quant.from_raw(raw_tensor(GGMLType.Q8_0, (16, 64)), layout="rows")


def test_an_expert_is_multiplied_from_its_own_tiles() -> None:
    raw = raw_tensor(GGMLType.Q4_0, (3, 20, 64))
    stored = quant.from_raw(raw, layout="cpu")
    weights = Weights(load=lambda name: stored, taken=set(), implementation="cpu")
    experts, x = ExpertLinear(weights, "experts", 3, (64, 20)), activations(5, 64)
    for expert in range(3):
        product = cpu_kernels.quantized_matmul(x, stored.data[expert], "Q4_0", (20, 64))
        np.testing.assert_array_equal(apply_expert(experts.maps, x, jnp.int32(expert), "cpu"), product)


@pytest.mark.parametrize("layout", ["triton", "tpu", "mps"])
def test_layouts_of_accelerators_decode_export_and_differentiate_through_xla(layout: str) -> None:
    """What was loaded for kernels stays an ordinary weight: every use of it that needs no kernel works anywhere."""
    raw = raw_tensor(GGMLType.Q5_1, (37, 96))
    blocks, w = quant.from_raw(raw), quant.from_raw(raw, layout=layout)
    np.testing.assert_array_equal(dequantize(w), dequantize(blocks))
    ids = jnp.asarray([[0, 36], [5, 5]])
    np.testing.assert_array_equal(take_rows(w, ids), take_rows(blocks, ids))
    described = quant.abstract(raw, layout)
    assert jax.tree.structure(described) == jax.tree.structure(w)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(described)] == [(a.shape, a.dtype) for a in jax.tree.leaves(w)]
    assert (w.shape, w.nbytes) == ((37, 96), sum(a.nbytes for a in jax.tree.leaves(w)))
    x = activations(2, 96)
    exported = jax.export.export(jax.jit(lambda x, data: quantized_matmul(x, w.with_data(data))))(x, w.data)
    np.testing.assert_array_equal(exported.call(x, w.data), quantized_matmul(x, w))
    gradient = jax.grad(lambda x: quantized_matmul(x, w).sum())(x)
    # Sums of 37 and 96 float32 products of about 1, in two orders.
    np.testing.assert_allclose(gradient, jnp.tile(dequantize(blocks).sum(axis=0), (2, 1)), atol=37 * 2**-20)
    np.testing.assert_allclose(quantized_matmul(x, w), quantized_matmul(x, blocks), atol=96 * 2**-20)
    with pytest.raises(ValueError, match=f"implementation 'cpu' needs a Q5_1 weight in layout 'cpu', got '{layout}'"):
        quantized_matmul(x, w, implementation="cpu")


@pytest.mark.parametrize("layout", ["triton", "tpu"])
def test_vmap_over_activations_of_an_interpreted_kernel(layout: str) -> None:
    w = quant.from_raw(raw_tensor(GGMLType.Q4_0, (32, 64)), layout=layout)
    multiply = lambda x: quantized_matmul(x, w, implementation=f"{layout}_interpreted")  # noqa: E731
    x = activations(3, 2, 64)
    np.testing.assert_allclose(jax.vmap(multiply)(x), multiply(x), atol=64 * 2**-20)
