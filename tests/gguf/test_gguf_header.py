"""A file that ends behind its header opens for its header alone, with every check but that of the missing end."""

from pathlib import Path

import pytest
from gguf_bytes import Tensor, build

from realm_jax import gguf
from realm_jax.gguf import GGUFError, GGUFFile

Q4_0 = 2
SAMPLE = build(
    [("general.architecture", ("str", "llama"))],
    [Tensor("w", (64, 2), Q4_0, bytes(72)), Tensor("b", (4,), 0, bytes(16))],
)
TINY = sorted((Path(__file__).parents[1] / "data" / "tiny").glob("*.gguf"))


def cut(path: Path, data: bytes) -> Path:
    """The bytes in a file of their own."""
    path.write_bytes(data)
    return path


def described(file: GGUFFile) -> list[tuple[object, ...]]:
    return [(t.name, t.ggml_type, t.shape, t.nbytes, t.start) for t in file.tensors.values()]


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_header_says_what_the_whole_file_says(path: Path, tmp_path: Path) -> None:
    whole = gguf.open(path)
    first = min(tensor.start for tensor in whole.tensors.values())
    header = gguf.open(cut(tmp_path / "header.gguf", path.read_bytes()[:first]), header_only=True)
    assert described(header) == described(whole)
    assert header.metadata.keys() == whole.metadata.keys()


@pytest.mark.parametrize("size", [SAMPLE.header_end, SAMPLE.header_end + 1, len(SAMPLE.data) - 1, len(SAMPLE.data)])
def test_data_is_absent_whether_it_is_there_or_not(tmp_path: Path, size: int) -> None:
    file = gguf.open(cut(tmp_path / "cut.gguf", SAMPLE.data[:size]), header_only=True)
    assert [tensor.nbytes for tensor in file.tensors.values()] == [72, 16]
    with pytest.raises(GGUFError, match="'w' has no data: its file was opened for its header alone; open the whole"):
        _ = file.tensors["w"].data
    with pytest.raises(GGUFError, match="has no data"):
        file.tensors["w"].rows(0, 1)


def test_the_header_itself_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="the file is damaged or incomplete"):
        gguf.open(cut(tmp_path / "cut.gguf", SAMPLE.data[: SAMPLE.header_end - 1]), header_only=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tensor 0 dim 1", 2**62, "'w' .* needs .* bytes, but no file has more than 9223372036854775807"),
        ("tensor 1 offset", 2**63, "the data of tensor 'b' .* must end at byte .* no file has more than"),
        ("tensor 1 offset", 64, "the offset of tensor 'b' .* overlaps tensor 'w'"),
        ("tensor 1 offset", 97, "the offset of tensor 'b' .* must be a multiple of 32"),
        ("tensor 0 dim 0", 33, "the row length of tensor 'w' .* multiple of 32"),
        ("tensor count", 2**64 - 1, "the tensor count .* must be at most"),
    ],
)
def test_sizes_are_checked_without_the_data(tmp_path: Path, field: str, value: int, message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        gguf.open(cut(tmp_path / "bad.gguf", SAMPLE.patch(field, value)[: SAMPLE.header_end]), header_only=True)


def test_a_header_alone_is_refused_where_the_data_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="but the file has .* bytes; the file is damaged or incomplete"):
        gguf.open(cut(tmp_path / "cut.gguf", SAMPLE.data[: SAMPLE.header_end]))
