"""MLX's affine layout: the file's own weights, bit for bit, and what sums lose that take scale and bias apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_cases import random_blocks, reference

from realm_jax import quant
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.quant import affine, dequantize

KINDS = pytest.mark.parametrize("kind", affine.FORMATS, ids=lambda kind: kind.name)


def raw_of(kind: GGMLType, rows: int, columns: int, *lead: int) -> RawTensor:
    shape = (*lead, rows, columns)
    blocks = random_blocks(kind, int(np.prod(shape)) // kind.block_size)
    return RawTensor("w", kind, shape, blocks.reshape(-1))


def decoded(raw: RawTensor) -> np.ndarray:
    return reference(raw.ggml_type, raw.data.reshape(-1, raw.ggml_type.type_size)).reshape(raw.shape)


@KINDS
def test_nothing_is_rounded(kind: GGMLType) -> None:
    raw = raw_of(kind, 5, 2 * kind.block_size, 3)
    w, weights = quant.from_raw(raw, layout="mps"), decoded(raw)
    assert (w.layout, w.shape) == ("mps", raw.shape)
    np.testing.assert_array_equal(jax.jit(dequantize)(w), weights)
    described = quant.abstract(raw, "mps")
    assert jax.tree.structure(described) == jax.tree.structure(w)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(described)] == [(a.shape, a.dtype) for a in jax.tree.leaves(w)]
    one = w.with_data(tuple(part[1] for part in w.data))
    ids = jnp.asarray([[4, 0], [2, 9]])
    np.testing.assert_array_equal(jax.jit(quant.take_rows)(one, ids), weights[1][np.clip(ids, 0, 4)])


@KINDS
def test_codes_lie_as_the_kernel_reads_them(kind: GGMLType) -> None:
    """By the equation of `mlx.core.dequantize`, field by field."""
    raw, form = raw_of(kind, 3, kind.block_size), affine.FORMATS[kind]
    codes, scales, biases = affine.pack(raw.data, kind, raw.shape)
    columns = np.arange(raw.shape[-1])
    per_word = 32 // form.bits
    fields = codes[:, columns // per_word] >> (columns % per_word * form.bits).astype(np.uint32) & (2**form.bits - 1)
    weights = scales[:, columns // form.group] * fields.astype(np.float32) + biases[:, columns // form.group]
    np.testing.assert_array_equal(weights, decoded(raw))


def test_many_rows_are_packed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(GGMLType.Q5_0, 7, 64)
    whole = affine.pack(raw.data, raw.ggml_type, raw.shape)
    monkeypatch.setattr(affine, "_PIECE", 3)
    for part, expected in zip(affine.pack(raw.data, raw.ggml_type, raw.shape), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@KINDS
def test_sums_that_take_scale_and_bias_apart_lose_little(kind: GGMLType) -> None:
    """A kernel may add up `scale * sum(x code) + bias * sum(x)` for each group, as MLX's do for few rows."""
    raw, form = raw_of(kind, 8, 2 * max(kind.block_size, 128)), affine.FORMATS[kind]
    w = quant.from_raw(raw, layout="mps")
    columns = raw.shape[-1]
    x = np.random.default_rng(2).normal(size=columns).astype(np.float32)
    codes, scales, biases = (np.asarray(part) for part in w.data)
    shifts = np.arange(0, 32, form.bits, dtype=np.uint32)
    fields = (codes[..., None] >> shifts & np.uint32(2**form.bits - 1)).reshape(*scales.shape, form.group)
    grouped = x.reshape(-1, form.group)
    with_codes = np.einsum("ngk,gk->ng", fields.astype(np.float32), grouped)
    y = (scales * with_codes + biases * grouped.sum(axis=-1)).sum(axis=-1)
    exact = decoded(raw).astype(np.float64) @ x.astype(np.float64)
    # Each of at most `columns` products and sums, in any order, rounds by 2^-24 of what it adds up: the parts that
    # scale times code and bias make of a weight, in Q8_0 up to 383 scales together where weights are up to 128.
    parts = np.abs(scales)[..., None] * fields + np.abs(biases)[..., None]
    magnitude = np.einsum("ngk,gk->n", parts.astype(np.float64), np.abs(grouped).astype(np.float64))
    np.testing.assert_array_less(np.abs(y - exact), (columns + 3) * 2.0**-24 * magnitude + 1e-30)


def test_types_in_groups_of_16_or_with_codebooks_stay_in_blocks() -> None:
    kept = {kind.name for kind in GGMLType if kind.block_size > 1 and kind not in affine.FORMATS}
    assert {"Q2_K", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "Q8_K"} <= kept
    for kind in (GGMLType.Q6_K, GGMLType.MXFP4):
        assert quant.from_raw(raw_of(kind, 2, kind.block_size), layout="mps").layout == "blocks"
    vector = RawTensor("v", GGMLType.Q8_0, (32,), random_blocks(GGMLType.Q8_0, 1).reshape(-1))
    assert quant.from_raw(vector, layout="mps").layout == "blocks"
