"""Owns the tests of the commands that read model files: tokenize, inspect, pull, and what they refuse."""

from pathlib import Path

import pytest
import tiny_chat
from conftest import Realm


def test_tokenize_prints_ids_and_pieces(realm: Realm, tiny: str) -> None:
    outcome = realm("tokenize", tiny, "hi ö<|im_end|>")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["id", "247", "32", "195", "182", "246"]
    assert "'\\\\xc3'" in outcome.out, "a part of a character is shown as its byte"


def test_tokenize_json_and_special_tokens(realm: Realm, tiny: str) -> None:
    assert realm("tokenize", tiny, "hi!", "--json").json == {"token_ids": [247, 33], "pieces": ["hi", "!"], "count": 2}
    assert realm("tokenize", tiny, "<|im_end|>", "--json").json["count"] == 1
    assert realm("tokenize", tiny, "<|im_end|>", "--no-parse-special", "--json").json["count"] == 10
    assert realm("tokenize", tiny, "", "--json").json["count"] == 0


def test_tokenize_reads_a_file_as_it_is(realm: Realm, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hi\r\n")
    assert realm("tokenize", tiny, "--file", str(tmp_path / "text"), "--json").json["token_ids"] == [247, 13, 10]


def test_tokenize_reads_standard_input(realm_process: Realm, tiny: str) -> None:
    assert realm_process("tokenize", tiny, "--file", "-", "--json", stdin=b"hi").json["token_ids"] == [247]


def test_invalid_utf8_is_refused_wherever_it_comes_from(realm_process: Realm, tiny: str, tmp_path: Path) -> None:
    realm_process("tokenize", tiny, b"a\xff").assert_refused("TEXT must be valid UTF-8, got byte 0xff at character 2")
    (tmp_path / "text").write_bytes(b"ab\xfe")
    wrong = realm_process("tokenize", tiny, "--file", str(tmp_path / "text"))
    wrong.assert_refused("text must be valid UTF-8, got byte 0xfe at offset 2")
    wrong = realm_process("tokenize", tiny, "--file", "-", stdin=b"\x80")
    wrong.assert_refused("standard input must be valid UTF-8, got byte 0x80 at offset 0")


def test_inspect_shows_metadata_types_and_memory(realm: Realm, tiny: str) -> None:
    outcome = realm("inspect", tiny)
    assert outcome.code == 0
    for text in ("general.architecture", "256 items: ", "F32", "312.6 kB", "131.1 kB", "65.5 kB"):
        assert text in outcome.out
    assert "blk.0.attn_q.weight" in realm("inspect", tiny, "--tensors").out


def test_inspect_json(realm: Realm, tiny: str) -> None:
    report = realm("inspect", tiny, "--json").json
    assert report["architecture"] == "llama" and report["paths"] == [tiny]
    assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == 256
    assert sum(tensor["bytes"] for tensor in report["tensors"]) == report["memory"]["weights"]
    # 2 layers, 2 KV heads, keys and values of 16
    assert report["memory"]["kv_cache"]["values_per_token"] == 2 * 2 * (16 + 16)
    assert report["memory"]["kv_cache"]["contexts"] == [{"context": 256, "float32": 131072, "bfloat16": 65536}]
    assert len(realm("inspect", tiny, "--json", "--full").json["metadata"]["tokenizer.ggml.tokens"]) == 256


def test_inspect_reads_architectures_that_cannot_run(realm: Realm, tmp_path: Path) -> None:
    path = tiny_chat.write(tmp_path / "odd.gguf", architecture="odd")
    assert realm("inspect", str(path), "--json").json["architecture"] == "odd"


def test_pull_prints_the_path(realm: Realm, tiny: str) -> None:
    assert realm("pull", tiny).out.splitlines()[0] == tiny
    assert realm("pull", tiny, "--json").json["path"] == tiny


@pytest.mark.parametrize("name", ["inspect", "tokenize"])
def test_files_that_are_no_model_are_refused(realm: Realm, tiny: str, tmp_path: Path, name: str) -> None:
    words = ["hi"] if name == "tokenize" else []
    text = tmp_path / "text.gguf"
    text.write_text("This is not a model at all, but someone gave it the name of one.\n")
    realm(name, str(text), *words).assert_refused("must start with b'GGUF'")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(tiny).read_bytes()[:100_000])
    realm(name, str(cut), *words).assert_refused("but the file has 100000 bytes")
    realm(name, str(tmp_path), *words).assert_refused("a model must be a file, got the folder")
    realm(name, str(tmp_path / "absent.gguf"), *words).assert_refused("the model file must exist")
    realm(name, "nonsense", *words).assert_refused("unknown model 'nonsense'")


def test_an_unwritable_cache_folder_is_refused(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALM_CACHE_DIR", "/proc/none")
    realm("pull", "smollm2").assert_refused("the cache folder must be writable to download smollm2, got /proc/none")


def test_offline_without_a_copy_is_refused(realm: Realm) -> None:
    realm("pull", "smollm2", "--offline").assert_refused("smollm2 is not in the cache folder")
