"""Files as a whole: paths that are none, shards, offsets past 4 GiB, closing, typed look-ups, the real models."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import Tensor, build

from realm_jax.gguf import GGMLType, GGUFError, GGUFFile, StringArray
from realm_jax.gguf import open as open_gguf

F32, I8 = 0, 24
ROOT = Path(__file__).parents[2]


def _save(path: Path, metadata=(), tensors=(), **options) -> Path:
    path.write_bytes(build(metadata, tensors, **options).data)
    return path


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.gguf: no such file; check the path"):
        open_gguf(tmp_path / "none.gguf")


def test_paths_that_hold_no_file_are_one_sentence(tmp_path):
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="must name a GGUF file, but it is a folder; give the path"):
        open_gguf(tmp_path)
    with pytest.raises(GGUFError, match="but the file is empty; fetch it again"):
        open_gguf(tmp_path / "empty.gguf")
    with pytest.raises(GGUFError, match="not a regular file"):
        open_gguf(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="cannot be read .*null.*; check its path"):
        open_gguf("a\0b")
    with pytest.raises(GGUFError, match="cannot be read .*; check its path"):
        open_gguf(tmp_path / "empty.gguf" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_one_sentence(tmp_path):
    path = _save(tmp_path / "a.gguf")
    path.chmod(0)
    with pytest.raises(GGUFError, match="Permission denied.*; check its path and permissions"):
        open_gguf(path)


def test_a_file_without_tensors_and_metadata_opens(tmp_path):
    found = open_gguf(str(_save(tmp_path / "a.gguf")))
    assert (len(found.metadata), len(found.tensors), found.alignment) == (0, 0, 32)


def test_a_scalar_tensor_has_no_axes(tmp_path):
    tensor = Tensor("s", (), F32, np.float32(3).tobytes())
    found = open_gguf(_save(tmp_path / "a.gguf", [], [tensor])).tensors["s"]
    assert (found.shape, found.nbytes, found.data.view("<f4").tolist()) == ((), 4, [3.0])


@pytest.mark.parametrize("alignment", [1, 2, 64, 2**16])
def test_any_power_of_two_is_an_alignment(tmp_path, alignment):
    tensors = [Tensor(name, (5,), I8, name.encode() * 5) for name in "abc"]
    metadata = [("general.alignment", ("u32", alignment))]
    found = open_gguf(_save(tmp_path / "a.gguf", metadata, tensors, alignment=alignment))
    assert [t.data.tobytes() for t in found.tensors.values()] == [b"aaaaa", b"bbbbb", b"ccccc"]


def test_tensors_may_lie_in_another_order_than_their_entries(tmp_path):
    tensors = [Tensor("late", (4,), I8, b"late", offset=64), Tensor("early", (5,), I8, b"early", offset=0)]
    found = open_gguf(_save(tmp_path / "a.gguf", [], tensors)).tensors
    assert {name: t.data.tobytes() for name, t in found.items()} == {"late": b"late", "early": b"early"}


def test_text_that_is_not_utf8_keeps_its_bytes(tmp_path):
    raw = b"caf\xe9 \xff\x00"
    metadata = [("s", ("str", raw)), ("a", ("arr", ("str", [raw, b""]))), ("long", ("str", raw * 5000))]
    found = open_gguf(_save(tmp_path / "a.gguf", metadata)).metadata
    for text, expected in ((found["s"], raw), (found["a"][0], raw), (found["long"], raw * 5000)):
        assert text.encode("utf-8", "surrogateescape") == expected
    assert found["a"][1] == ""


def test_a_string_array_behaves_like_a_sequence(tmp_path):
    words = [f"word {i}" for i in range(100)]
    found = open_gguf(_save(tmp_path / "a.gguf", [("a", ("arr", ("str", words)))])).metadata["a"]
    assert isinstance(found, StringArray)
    assert (len(found), list(found), found[np.int64(37)], found[-1]) == (100, words, "word 37", "word 99")
    assert found[90:10:-7] == words[90:10:-7]
    assert "word 42" in found and "word 100" not in found
    assert list(reversed(found)) == words[::-1]
    with pytest.raises(IndexError, match=r"index must be in \[-100, 100\), got 100"):
        found[100]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 32, 1000])
@pytest.mark.parametrize(
    "texts",
    [
        ["", "a", "caf\u00e9", "\u65e5\u672c", "\U0001f600", "x" * 300, " ", "\n"],
        [b"\xff", b"caf\xe9", b"\xe2\x82", b"\x80\xf0\x9f", b"", b"\xed\xa0\x80"],
        ["a\0b", "\0", "", "plain"],
        [""],
    ],
)
def test_all_strings_together_are_those_taken_one_by_one(tmp_path, texts, count, order):
    stored = [texts[i * 7 % len(texts)] for i in range(count)]
    found = open_gguf(_save(tmp_path / "a.gguf", [("a", ("arr", ("str", stored)))], order=order)).metadata["a"]
    expected = [t if isinstance(t, str) else t.decode("utf-8", "surrogateescape") for t in stored]
    assert list(found) == expected == [found[i] for i in range(count)]


def test_offsets_past_4_gib(tmp_path):
    """Two tensors in a sparse file of 6 GiB, which takes a few kB of disk."""
    gib = 2**30
    path = tmp_path / "big.gguf"
    image = build([], [Tensor("first", (5 * gib,), I8, b""), Tensor("second", (2**27, 2), F32, b"")])
    base = -(-image.header_end // 32) * 32
    with path.open("wb") as file:
        file.write(image.patch("tensor 1 offset", 5 * gib)[: image.header_end])
        file.truncate(base + 6 * gib)
        file.seek(base + 5 * gib - 1)
        file.write(b"\x07\x01\x02\x03\x04")
        file.seek(base + 6 * gib - 1)
        file.write(b"\x09")
    first, second = open_gguf(path).tensors.values()
    assert (first.nbytes, first.data[-1]) == (5 * gib, 7)
    assert (second.shape, second.nbytes) == ((2, 2**27), gib)
    assert (second.data[:4].tolist(), second.data[-1]) == ([1, 2, 3, 4], 9)


def test_closing_lets_go_but_keeps_what_was_taken(tmp_path):
    path = _save(tmp_path / "a.gguf", [("a", ("arr", ("str", ["x"])))], [Tensor("w", (4,), I8, b"abcd")])
    with open_gguf(path) as found:
        data, words = found.tensors["w"].data, found.metadata["a"]
    assert (data.tobytes(), list(words)) == (b"abcd", ["x"])
    assert "closed" in repr(found)
    with pytest.raises(GGUFError, match="closed"):
        _ = found.tensors
    with pytest.raises(GGUFError, match="closed"):
        _ = found.metadata


@pytest.fixture
def typed(tmp_path) -> GGUFFile:
    """A file with one value of each kind."""
    metadata = [
        ("general.architecture", ("str", "llama")),
        ("int", ("u32", 7)),
        ("float", ("f32", 0.5)),
        ("bool", ("bool", 1)),
        ("numbers", ("arr", ("f32", [1.0, 2.0]))),
        ("strings", ("arr", ("str", ["a"]))),
    ]
    return open_gguf(_save(tmp_path / "a.gguf", metadata))


def test_required_values_have_the_type_asked_for(typed):
    assert typed.architecture == "llama"
    assert (typed.require("int", int), typed.require("float", float), typed.require("bool", bool)) == (7, 0.5, True)
    assert typed.require("numbers", np.ndarray).tolist() == [1.0, 2.0]
    assert list(typed.require("strings", StringArray)) == ["a"]
    whole = typed.require("int", float)
    assert (whole, type(whole)) == (7.0, float)


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("absent", int, "metadata 'absent' is required but missing"),
        ("bool", int, "metadata 'bool' must be int, got True"),
        ("float", int, "metadata 'float' must be int, got 0.5"),
        ("bool", float, "metadata 'bool' must be float, got True"),
        ("int", str, "metadata 'int' must be str, got 7"),
        ("strings", np.ndarray, "metadata 'strings' must be ndarray, got StringArray"),
    ],
)
def test_a_required_value_of_another_type_is_an_error(typed, key, kind, message):
    with pytest.raises(GGUFError, match=message):
        typed.require(key, kind)


def test_a_default_gives_the_type(typed):
    assert (typed.get("absent"), typed.get("absent", 5), typed.get("int"), typed.get("int", 5)) == (None, 5, 7, 7)
    assert typed.get("int", 1.0) == 7.0
    with pytest.raises(GGUFError, match="metadata 'bool' must be int"):
        typed.get("bool", 5)


def test_opening_needs_neither_jax_nor_the_gguf_package():
    code = "import sys, realm_jax.gguf; print([m for m in ('jax', 'jaxlib', 'flax', 'gguf') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]"


def _check_against_package(path: Path) -> None:
    expected = gguf.GGUFReader(path)
    found = open_gguf(path)
    fields = {name: field for name, field in expected.fields.items() if not name.startswith("GGUF.")}
    assert list(found.metadata) == list(fields)
    for name, field in fields.items():
        value = found.metadata[name]
        contents = field.contents()
        assert (list(value) if isinstance(contents, list) else value) == contents
    assert list(found.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        ours = found.tensors[tensor.name]
        assert ours.ggml_type == GGMLType(int(tensor.tensor_type))
        assert ours.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert np.array_equal(ours.data, tensor.data.reshape(-1).view(np.uint8))


def test_smollm2_equals_the_package(smollm2_path):
    _check_against_package(smollm2_path)


@pytest.mark.slow
def test_gemma3_equals_the_package(gemma3_path):
    _check_against_package(gemma3_path)


def test_gemma3_opens_and_its_vocabulary_is_whole(gemma3_path):
    found = open_gguf(gemma3_path)
    assert found.architecture == "gemma3"
    tokens = found.metadata["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[:4]) == (262_144, ["<pad>", "<eos>", "<bos>", "<unk>"])
    assert len(found.metadata["tokenizer.ggml.scores"]) == 262_144
    assert found.tensors["token_embd.weight"].shape == (262_144, 640)


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages as Linux does")
def test_released_bytes_leave_memory_and_come_back(tmp_path):
    values = np.arange(2**22, dtype=np.float32)
    tensors = [Tensor("small", (5,), I8, b"small"), Tensor("w", (2**22,), F32, values.tobytes())]
    file = open_gguf(_save(tmp_path / "model.gguf", tensors=tensors))
    raw = file.tensors["w"]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE  # of files

    before = resident()
    assert raw.data.any()
    np.testing.assert_array_equal(raw.data.view(np.float32), values)
    read = resident()
    raw.release()
    # Of 16 MiB; Linux counts in steps of some hundred pages.
    assert read - before > 12 * 2**20 and read - resident() > 12 * 2**20
    np.testing.assert_array_equal(raw.data.view(np.float32), values)
    file.tensors["small"].release()
    assert file.tensors["small"].data.tobytes() == b"small"
