"""Each rule of the format, broken alone, ends in one sentence that names the field, the rule and the remedy."""

import re
import struct
from pathlib import Path

import pytest
from gguf_bytes import Image, Tensor, build

from realm_jax.gguf import GGUFError
from realm_jax.gguf import open as open_gguf

F32, Q4_0, Q4_K = 0, 2, 12
HUGE = 2**64 - 1
SAMPLE = build(
    [
        ("general.architecture", ("str", "llama")),
        ("flag", ("bool", 1)),
        ("numbers", ("arr", ("u32", [1, 2, 3]))),
        ("tokens", ("arr", ("str", ["a", "bc", "def"]))),
        ("nested", ("arr", ("arr", [("i32", [1]), ("str", ["x"])]))),
        ("flags", ("arr", ("bool", [0, 1]))),
    ],
    [Tensor("w", (64, 2), Q4_0, bytes(72)), Tensor("b", (4,), F32, bytes(16))],
)
PATCHES = [
    ("version", 1, r"the version at byte 4 must be one of \(2, 3\), got 1; .*convert"),
    ("version", 4, r"must be one of \(2, 3\), got 4"),
    ("tensor count", HUGE, r"the tensor count at byte 8 must be at most \d+, .* got 18446744073709551615"),
    ("tensor count", 3, "tensor 2"),
    ("metadata count", HUGE, r"the metadata count at byte 16 must be at most \d+"),
    ("metadata count", 7, "the length of the name of tensor 0 .* must be at most"),
    ("key 1 length", 0, "metadata key 1 .* must have 1 to 65535 bytes, got 0"),
    ("key 1 length", HUGE, "the length of metadata key 1 .* must be at most"),
    ("key 1 length", 2**63, "the length of metadata key 1 .* must be at most"),
    ("key 1 type", 13, "the type of metadata 'flag' .* must be 0 to 12, got 13"),
    ("value 0 length", 2**32, "the length of metadata 'general.architecture' .* must be at most"),
    ("value 1", 2, "metadata 'flag' .* must be 0 or 1 as a boolean, got 2"),
    ("value 2 item type", 77, "the item type of metadata 'numbers' .* got 77"),
    ("value 2 item count", 2**61, "the item count of metadata 'numbers' .* must be at most"),
    ("value 3 item count", HUGE, "the item count of metadata 'tokens' .* must be at most"),
    ("value 3[1] length", HUGE, r"the length of metadata 'tokens'\[1\] .* past the end"),
    ("value 3[2] length", 2**63, r"the length of metadata 'tokens'\[2\] .* past the end"),
    ("value 4 item count", 2**40, "the item count of metadata 'nested' .* must be at most"),
    ("value 4[1] item type", 99, r"the item type of metadata 'nested'\[1\] .* got 99"),
    ("value 5[1]", 255, "metadata 'flags' .* must hold 0 or 1 as booleans, got 255"),
    ("tensor 0 name length", 0, "the name of tensor 0 .* must have 1 to 65535 bytes, got 0"),
    ("tensor 0 n_dims", 5, "the number of dimensions of tensor 'w' .* must be at most 4, got 5"),
    ("tensor 0 n_dims", 2**32 - 1, "the number of dimensions of tensor 'w' .* must be at most"),
    ("tensor 0 dim 1", 0, "dimension 1 of tensor 'w' .* must be at least 1, got 0"),
    ("tensor 0 dim 1", -1, "dimension 1 of tensor 'w' .* must be at least 1, got -1"),
    ("tensor 0 dim 1", 2**62, r"the shape \(64, 4611686018427387904\) of tensor 'w' .* needs"),
    ("tensor 0 dim 0", 33, "the row length of tensor 'w' .* multiple of 32, the block size of Q4_0, got 33"),
    ("tensor 0 type", 4, "the type of tensor 'w' .* must be a known GGML type, got 4"),
    ("tensor 0 type", 1 << 31, "the type of tensor 'w' .* must be a known GGML type"),
    ("tensor 0 type", Q4_K, "multiple of 256"),
    ("tensor 1 offset", 97, "the offset of tensor 'b' .* must be a multiple of 32, got 97"),
    ("tensor 1 offset", 64, "the offset of tensor 'b' .* overlaps tensor 'w'"),
    ("tensor 0 offset", 32, "the offset of tensor 'b' .* overlaps tensor 'w', which ends at"),
    ("tensor 1 offset", 2**63, "the data of tensor 'b' .* must end at byte"),
    ("tensor 1 offset", 128, "the data of tensor 'b' .* must end at byte"),
]


def _reject(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert re.search(message, text)
    assert "; " in text and "\n" not in text
    assert len(text) < len(str(path)) + 300


def test_the_sample_itself_is_well_formed(tmp_path):
    path = tmp_path / "good.gguf"
    path.write_bytes(SAMPLE.data)
    found = open_gguf(path)
    assert found.metadata["nested"][0].tolist() == [1]
    assert list(found.metadata["nested"][1]) == ["x"]
    assert found.metadata["flags"].tolist() == [False, True]
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"w": (2, 64), "b": (4,)}


@pytest.mark.parametrize(("field", "value", "message"), PATCHES)
def test_a_field_that_breaks_a_rule_is_named(tmp_path, field, value, message):
    _reject(tmp_path, SAMPLE.patch(field, value), message)


def test_the_same_field_is_named_in_a_big_endian_file(tmp_path):
    image = build([("a", ("arr", ("str", ["x", "y"])))], order=">")
    _reject(tmp_path, image.patch("value 0[1] length", 2**40), r"the length of metadata 'a'\[1\] .* past the end")


def test_every_truncation_is_an_error(tmp_path):
    for length in range(1, len(SAMPLE.data)):
        _reject(tmp_path, SAMPLE.data[:length], "byte|GGUF")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (build([("a", ("u8", 1)), ("a", ("u8", 2))]), "metadata key 'a' .* appears twice"),
        (build([(b"\xff\xfe", ("u8", 1))]), "metadata key 0 .* must be UTF-8"),
        (build([("k" * 65536, ("u8", 1))]), "must have 1 to 65535 bytes, got 65536"),
        (build([("k" * 65535, ("u8", 1))] * 2), r"metadata key 'k+\.\.\.' .* appears twice"),
        (build([], [Tensor("t", (1,), F32, bytes(4))] * 2), "the name of tensor 't' .* appears twice"),
        (build([("general.alignment", ("u32", 0))]), "general.alignment must be a power of two, got 0"),
        (build([("general.alignment", ("u32", 48))]), "general.alignment must be a power of two, got 48"),
        (build([("general.alignment", ("i32", -32))]), "general.alignment must be a power of two, got -32"),
        (build([("general.alignment", ("str", "32"))]), "general.alignment must be a power of two, got '32'"),
        (build([("general.alignment", ("str", "3\n" * 9000))]), r"got '3.n3.n"),
        (
            build([("general.alignment", ("arr", ("u32", [32])))]),
            "general.alignment must be a power of two, got ndarray",
        ),
        (build([("general.alignment", ("f32", 32.0))]), "general.alignment must be a power of two, got 32.0"),
        (
            build([("general.alignment", ("u32", 2**31))], [Tensor("t", (1,), F32, bytes(4))]),
            "the data of tensor 't' .* must end at byte",
        ),
        (
            build([("d", ("arr", ("arr", [("arr", [("arr", [("arr", [("u8", [1])])])])])))]),
            r"metadata 'd'\[0\].* nests arrays more than 4 deep",
        ),
    ],
)
def test_a_rule_between_fields_is_named(tmp_path, image: Image, message):
    _reject(tmp_path, image.data, message)


def test_more_nested_arrays_than_a_file_may_hold_are_an_error(tmp_path):
    inner = struct.pack("<IQ", 0, 0) * (2**16 + 1)
    image = build([("d", ("arr", ("arr", [])))])
    _reject(tmp_path, image.patch("value 0 item count", 2**16 + 1) + inner, "'d' .* must hold at most 65536 further")


def test_more_entries_than_a_file_may_hold_are_an_error(tmp_path):
    room = bytes(25 * (2**16 + 1))
    image = build()
    _reject(tmp_path, image.patch("tensor count", 2**16 + 1) + room, "the tensor count .* must be at most 65536")
    _reject(tmp_path, image.patch("metadata count", 2**16 + 1) + room, "the metadata count .* must be at most 65536")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"A text file with another name.", "must start with b'GGUF', got b'A te'; give the path"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04archive/data.pkl", "PyTorch"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (struct.pack("<Q", 99) + b'{"__metadata__":{}}', "safetensors"),
        (b"GG", "must start with b'GGUF', got b'GG'"),
    ],
)
def test_another_kind_of_file_is_recognised(tmp_path, start, message):
    _reject(tmp_path, start, message)
