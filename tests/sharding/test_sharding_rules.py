"""The rules by which arrays are split: by the roles of their axes, in whole pieces, or not at all."""

from pathlib import Path

import jax
import numpy as np
import pytest

from realm_jax import MeshConfig, gguf, quant
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.ops.kv_cache import kv_cache_split
from realm_jax.quant import QTensor
from realm_jax.sharding import MESH_AXES, RULES, WEIGHT_AXES, split_axes, weight_split

TINY = Path(__file__).parents[1] / "data" / "tiny"


def sizes(data: int = 1, tensor: int = 1, expert: int = 1) -> dict[str, int]:
    return dict(zip(MESH_AXES, (data, tensor, expert), strict=True))


def stored(kind: GGMLType, *shape: int, matrix: tuple[int, int] | None = None) -> QTensor:
    data = jax.ShapeDtypeStruct(shape, "float32" if kind == GGMLType.F32 else "uint8")
    return QTensor(data, kind, "blocks" if matrix is None else "cpu", matrix)


@pytest.mark.parametrize(
    ("name", "weight", "mesh", "split"),
    [
        # Rows of what projects from the stream; a part may begin inside a head.
        ("blk.0.attn_q.weight", stored(GGMLType.Q4_0, 96, 2, 18), sizes(tensor=4), ("tensor", None)),
        ("blk.7.ffn_up.weight", stored(GGMLType.F32, 56, 40), sizes(tensor=4), ("tensor", None)),
        ("token_embd.weight", stored(GGMLType.Q6_K, 1000, 1, 210), sizes(tensor=8), ("tensor", None)),
        # Whole blocks of what projects back to it; its rows where the blocks do not divide, else nothing.
        ("blk.0.attn_output.weight", stored(GGMLType.Q4_0, 64, 4, 18), sizes(tensor=2), (None, "tensor")),
        ("blk.0.ffn_down.weight", stored(GGMLType.Q4_0, 64, 3, 18), sizes(tensor=2), ("tensor", None)),
        ("blk.0.ffn_down.weight", stored(GGMLType.Q4_0, 9, 3, 18), sizes(tensor=2), (None, None)),
        # Whole tiles of rows; tiles run through all columns, and one that is filled up is like no other.
        ("blk.0.ffn_down.weight", stored(GGMLType.Q4_0, 4, 99, matrix=(64, 96)), sizes(tensor=4), ("tensor", None)),
        ("blk.0.attn_q.weight", stored(GGMLType.Q4_0, 4, 99, matrix=(60, 96)), sizes(tensor=2), (None, None)),
        # Whole experts, over both axes where their number allows.
        (
            "blk.0.ffn_up_exps.weight",
            stored(GGMLType.MXFP4, 8, 32, 2, 17),
            sizes(tensor=2, expert=4),
            (("expert", "tensor"), None, None),
        ),
        (
            "blk.0.ffn_down_exps.weight",
            stored(GGMLType.MXFP4, 4, 64, 2, 17),
            sizes(tensor=2, expert=4),
            ("expert", None, None),
        ),
        # Vectors, the router, and everything on a mesh that does not split weights.
        ("blk.0.attn_norm.weight", stored(GGMLType.F32, 64), sizes(tensor=2), (None,)),
        ("blk.0.ffn_up_exps.bias", stored(GGMLType.F32, 4, 64), sizes(tensor=2, expert=2), (None, None)),
        ("blk.0.ffn_gate_inp.weight", stored(GGMLType.F32, 4, 64), sizes(tensor=2, expert=2), (None, None)),
        ("blk.0.attn_q.weight", stored(GGMLType.Q4_0, 96, 2, 18), sizes(data=4), (None, None)),
    ],
)
def test_a_weight_is_split_in_whole_pieces(name: str, weight: QTensor, mesh: dict[str, int], split: object) -> None:
    assert weight_split(name, weight.units, mesh) == split


@pytest.mark.parametrize("layout", ["triton", "tpu"])
@pytest.mark.parametrize(
    ("kind", "shape", "units"),
    [
        # Rows are filled up in each part. Columns go by whole blocks, and by two groups, whose scales share a word.
        (GGMLType.Q4_0, (24, 192), (24, 3)),
        (GGMLType.Q4_0, (24, 96), (24, 1)),
        (GGMLType.NVFP4, (24, 192), (24, 3)),
        (GGMLType.Q6_K, (3, 1024), (3, 4)),
        (GGMLType.MXFP4, (8, 24, 192), (8, 24, 3)),
    ],
)
def test_kernels_for_accelerators_take_parts_of_either_axis(
    kind: GGMLType, shape: tuple[int, ...], units: tuple[int, ...], layout: str
) -> None:
    raw = RawTensor("w", kind, shape, np.zeros(0, np.uint8))
    weight = quant.abstract(raw, layout)
    assert weight.layout == layout and weight.units == units


def test_parts_are_filled_up_each() -> None:
    """Five times 128 lanes hold 576 rows, eight parts of 72 of them take 128 each; columns of whole tiles none more."""
    raw = RawTensor("w", GGMLType.Q4_1, (576, 1024), np.zeros(0, np.uint8))
    shapes = [
        [array.shape for array in quant.stored_shape_dtype(raw, "tpu", counts)] for counts in ((1, 1), (8, 1), (1, 8))
    ]
    assert shapes == [[(128, 640), (32, 640)], [(128, 1024), (32, 1024)], [(128, 640), (32, 640)]]


def test_what_mlx_multiplies_is_not_split() -> None:
    raw = RawTensor("w", GGMLType.Q4_0, (64, 64), np.zeros(0, np.uint8))
    with pytest.raises(ValueError, match="a weight that is split must be in another layout, got 'mps'; leave out mesh"):
        _ = quant.abstract(raw, "mps").units


@pytest.mark.parametrize("path", sorted(TINY.glob("*.gguf")), ids=lambda path: path.stem)
def test_every_matrix_of_every_family_has_a_role(path: Path) -> None:
    """On a mesh that divides everything, every matrix but the router is split."""
    for name, raw in gguf.open(path).tensors.items():
        weight = quant.abstract(raw)
        split = weight_split(name, (4,) * len(weight.units), sizes(tensor=2))
        matrix = len(raw.shape) > 1 and not name.endswith(".bias") and "ffn_gate_inp" not in name
        assert any(split) == matrix, name


def test_roles_are_those_that_rules_exist_for() -> None:
    assert {axis for axes in WEIGHT_AXES.values() for axis in axes} <= set(RULES)
    assert {axis for axes in RULES.values() for axis in axes} == set(MESH_AXES)


def test_a_matrix_without_a_role_is_refused() -> None:
    with pytest.raises(ValueError, match="blk.0.ssm_in.weight has none in WEIGHT_AXES"):
        weight_split("blk.0.ssm_in.weight", (64, 64), sizes(tensor=2))


def test_an_axis_of_the_mesh_splits_an_array_once() -> None:
    assert split_axes(("vocab", "mlp"), (8, 8), sizes(tensor=2)) == ("tensor", None)
    assert split_axes(("experts", "mlp"), (6, 8), sizes(tensor=2, expert=2)) == ("expert", "tensor")


def test_caches_are_split_by_heads() -> None:
    assert kv_cache_split((9, 16, 2, 4, 64), sizes(tensor=2)) == (None, None, None, "tensor", None)
    assert kv_cache_split((9, 16, 2, 3, 64), sizes(tensor=2)) == (None, None, None, None, None)


def test_a_mesh_has_at_least_one_part_of_each_kind() -> None:
    with pytest.raises(ValueError, match="tensor must be at least 1 part, got 0"):
        MeshConfig(tensor=0)
    present = len(jax.devices())
    with pytest.raises(ValueError, match=f"needs {2 * present} devices, JAX has {present}"):
        MeshConfig(data=2, tensor=present).mesh()
