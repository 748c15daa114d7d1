"""What the gguf package writes is read back equal: every value type, tensor type, alignment, byte order, version."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realm_jax.gguf import GGMLType, GGUFError
from realm_jax.gguf import open as open_gguf

INTEGERS = {
    gguf.GGUFValueType.UINT8: ("u1", 0, 2**8 - 1),
    gguf.GGUFValueType.INT8: ("i1", -(2**7), 2**7 - 1),
    gguf.GGUFValueType.UINT16: ("u2", 0, 2**16 - 1),
    gguf.GGUFValueType.INT16: ("i2", -(2**15), 2**15 - 1),
    gguf.GGUFValueType.UINT32: ("u4", 0, 2**32 - 1),
    gguf.GGUFValueType.INT32: ("i4", -(2**31), 2**31 - 1),
    gguf.GGUFValueType.UINT64: ("u8", 0, 2**64 - 1),
    gguf.GGUFValueType.INT64: ("i8", -(2**63), 2**63 - 1),
}
DTYPES = {kind: np.dtype(code) for kind, (code, _, _) in INTEGERS.items()} | {
    gguf.GGUFValueType.FLOAT32: np.dtype("f4"),
    gguf.GGUFValueType.FLOAT64: np.dtype("f8"),
    gguf.GGUFValueType.BOOL: np.dtype("?"),
}


def _item(kind: gguf.GGUFValueType) -> st.SearchStrategy[Any]:
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind][1:])
    if kind is gguf.GGUFValueType.BOOL:
        return st.booleans()
    if kind is gguf.GGUFValueType.STRING:
        return st.text(max_size=40)
    return st.floats(width=32 if kind is gguf.GGUFValueType.FLOAT32 else 64, allow_nan=False)


KINDS = st.sampled_from([*DTYPES, gguf.GGUFValueType.STRING])
SCALARS = KINDS.flatmap(lambda kind: st.tuples(st.just(kind), st.none(), _item(kind)))
# The package cannot write an empty array.
ARRAYS = KINDS.flatmap(
    lambda kind: st.tuples(
        st.just(gguf.GGUFValueType.ARRAY), st.just(kind), st.lists(_item(kind), min_size=1, max_size=50)
    )
)
KEYS = st.text(min_size=1, max_size=30).filter(lambda key: not key.startswith(("general.", "split.")))
METADATA = st.dictionaries(KEYS, SCALARS | ARRAYS, max_size=12)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=40),
    st.tuples(
        # The package writes Q8_1 in the block size of ggml's past.
        st.sampled_from([t for t in gguf.GGMLQuantizationType if t != gguf.GGMLQuantizationType.Q8_1]),
        st.lists(st.integers(1, 3), min_size=1, max_size=4),
        st.integers(0, 2**32 - 1),
    ),
    max_size=6,
)
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _write(path: Path, metadata: dict[str, Any], tensors: dict[str, Any], order: gguf.GGUFEndian, alignment: int):
    """Write with the package and return the bytes of each tensor; its shape is given in blocks of the last axis."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_custom_alignment(alignment)
    for key, (kind, item_kind, value) in metadata.items():
        writer.add_key_value(key, value, kind, item_kind)
    expected = {}
    for name, (kind, blocks, seed) in tensors.items():
        shape = (*blocks[:-1], blocks[-1] * gguf.GGML_QUANT_SIZES[kind][1])
        expected[name] = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        writer.add_tensor(name, expected[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _check_value(found: Any, kind: gguf.GGUFValueType, item_kind: gguf.GGUFValueType | None, value: Any) -> None:
    if item_kind is None:
        assert type(found) is type(value)
        assert found == value
    elif item_kind is gguf.GGUFValueType.STRING:
        assert list(found) == value
        assert [found[i] for i in range(-len(value), len(value))] == value * 2
        assert found[1:-1] == value[1:-1]
    else:
        assert found.dtype == DTYPES[item_kind]
        assert found.dtype.isnative
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, np.array(value, DTYPES[item_kind]))


@RELAXED
@given(METADATA, TENSORS, st.sampled_from([8, 32, 64, 4096]), st.sampled_from([2, 3]))
def test_a_file_of_the_package_is_read_back_equal(tmp_path, metadata, tensors, alignment, version):
    path = tmp_path / "model.gguf"
    expected = _write(path, metadata, tensors, gguf.GGUFEndian.LITTLE, alignment)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", version))
    found = open_gguf(path)
    assert (found.version, found.alignment, found.byte_order) == (version, alignment, "little")
    assert found.architecture == "llama"
    assert list(found.metadata) == ["general.architecture", "general.alignment", *metadata]
    for key, value in metadata.items():
        _check_value(found.metadata[key], *value)
    assert list(found.tensors) == list(expected)
    for name, data in expected.items():
        tensor = found.tensors[name]
        kind = GGMLType(tensors[name][0])
        assert (tensor.name, tensor.ggml_type) == (name, kind)
        assert tensor.shape == (*data.shape[:-1], data.shape[-1] // kind.type_size * kind.block_size)
        np.testing.assert_array_equal(tensor.data, data.reshape(-1))
        assert tensor.nbytes == data.nbytes
        assert not tensor.data.flags.writeable


@RELAXED
@given(METADATA)
def test_the_metadata_of_a_big_endian_file_is_read_back_equal(tmp_path, metadata):
    path = tmp_path / "model.gguf"
    _write(path, metadata, {}, gguf.GGUFEndian.BIG, 64)
    found = open_gguf(path)
    assert (found.version, found.alignment, found.byte_order) == (3, 64, "big")
    for key, value in metadata.items():
        _check_value(found.metadata[key], *value)
    assert dict(found.tensors) == {}


def test_the_tensors_of_a_big_endian_file_end_in_a_remedy(tmp_path):
    path = tmp_path / "model.gguf"
    _write(path, {}, {"w": (gguf.GGMLQuantizationType.Q4_K, [2, 1], 0)}, gguf.GGUFEndian.BIG, 32)
    found = open_gguf(path)
    assert found.architecture == "llama"
    with pytest.raises(GGUFError, match="gguf-convert-endian"):
        _ = found.tensors
