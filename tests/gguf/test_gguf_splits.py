"""Split models: any shard opens all, and shards that do not belong together are an error."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import Tensor, Value, build

from realm_jax.gguf import GGUFError
from realm_jax.gguf import open as open_gguf

I8 = 24


def _shard(folder: Path, number: int, count: int, names: str, order: str = "<", **changed: Value | None) -> Path:
    """Write shard `number` (from 1) with one tensor for each letter of `names`; `changed` replaces split values."""
    values = {"split_no": ("u16", number - 1), "split_count": ("u16", count), "split_tensors_count": ("i32", 4)}
    metadata = [(key.replace("_", "."), value) for key, value in (values | changed).items() if value is not None]
    if number == 1:
        metadata.insert(0, ("general.architecture", ("str", "llama")))
    tensors = [Tensor(name, (3,), I8, name.encode() * 3) for name in names]
    path = folder / f"model-{number:05d}-of-{count:05d}.gguf"
    path.write_bytes(build(metadata, tensors, order=order).data)
    return path


def test_any_shard_opens_all(tmp_path):
    paths = tuple(_shard(tmp_path, number, 3, names) for number, names in ((1, "a"), (2, "bc"), (3, "d")))
    for path in paths:
        found = open_gguf(path)
        assert found.paths == paths
        assert found.architecture == "llama"
        assert {name: t.data.tobytes() for name, t in found.tensors.items()} == {c: c.encode() * 3 for c in "abcd"}


def test_a_model_that_the_package_splits_is_read_back(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    expected = {f"t{i}": np.arange(i + 1, dtype=np.float32) for i in range(5)}
    for name, data in expected.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_gguf(tmp_path / "model-00002-of-00003.gguf")
    assert (len(found.paths), list(found.tensors)) == (3, list(expected))
    for name, data in expected.items():
        assert np.array_equal(found.tensors[name].data.view("<f4"), data)


def test_a_split_of_one_is_a_whole_model(tmp_path):
    path = _shard(tmp_path, 1, 1, "ab").rename(tmp_path / "whole.gguf")
    assert list(open_gguf(path).tensors) == ["a", "b"]


def test_a_missing_shard_is_named(tmp_path):
    path = _shard(tmp_path, 1, 3, "ab")
    _shard(tmp_path, 3, 3, "cd")
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing, first model-00002-of-00003.gguf; put all"):
        open_gguf(path)


def test_a_renamed_shard_is_an_error(tmp_path):
    path = _shard(tmp_path, 1, 2, "ab").rename(tmp_path / "first.gguf")
    with pytest.raises(GGUFError, match=r"must end in -00001-of-00002.gguf.*; give the shards their original names"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"split_no": ("u16", 0)}, "'split.no' must be 1, got 0"),
        ({"split_count": ("u16", 3)}, "'split.count' must be 2, got 3"),
        ({"split_tensors_count": ("i32", 5)}, "'split.tensors.count' must be 4, got 5"),
        ({"split_no": ("f32", 1.0)}, "'split.no' must be 1, got 1.0"),
        ({"split_no": None}, "'split.no' must be 1, got nothing"),
        ({"names": "bc"}, "tensor 'b' is in an earlier shard too"),
        ({"names": "cde"}, "'split.tensors.count' must be 5, got 4"),
        ({"order": ">"}, "all shards must have one byte order"),
    ],
)
def test_shards_that_do_not_belong_together_are_an_error(tmp_path, second, message):
    path = _shard(tmp_path, 1, 2, "ab")
    _shard(tmp_path, 2, 2, **({"names": "cd"} | second))
    with pytest.raises(GGUFError, match=message):
        open_gguf(path)
