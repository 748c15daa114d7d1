"""Owns the tests of reading no more than headers of models on the hub, against a small server of its protocol."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf as peer
import numpy as np
import pytest
import tiny_chat
from hub_server import Hub, serving

from realm_jax import gguf
from realm_jax.sources import SourceError, beginnings
from realm_jax.sources.hub import fetch, fetch_beginning

ROOT = Path(__file__).parents[2]
DATA = 3 << 20  # bytes of tensor data of a file
REALM = [sys.executable, "-c", "import sys; from realm_jax.cli import main; sys.exit(main())"]


def model_bytes(path: Path, *, words: int, **split: int) -> bytes:
    """A GGUF file with a vocabulary of so many words of 40 bytes, and one tensor."""
    writer = peer.GGUFWriter(path, "llama")
    for key, value in split.items():
        writer.add_key_value(key.replace("_", "."), value, peer.GGUFValueType.INT32)
    writer.add_token_list([f"{number:040d}" for number in range(words)])
    writer.add_tensor(f"weight{split.get('split_no', 0)}", np.zeros(DATA // 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("models")
    large = model_bytes(folder / "large.gguf", words=60_000)  # 2.9 MB of header
    split = {"split_count": 2, "split_tensors_count": 2}
    endless = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 3) + b"key" + struct.pack("<IQ", 8, 2**40)
    files = {
        "maker/one": {
            "small.gguf": model_bytes(folder / "small.gguf", words=10),
            "large.gguf": large,
            "cut.gguf": large[:2_000_000],
            "page.gguf": b"<html>" + bytes(2**21),
            "endless.gguf": endless + bytes(2**21),
            "tiny.gguf": tiny_chat.write(folder / "tiny.gguf").read_bytes(),
        },
        "maker/split": {
            f"Q4_0/big-Q4_0-0000{i + 1}-of-00002.gguf": model_bytes(folder / f"{i}.gguf", words=10, split_no=i, **split)
            for i in range(2)
        },
    }
    with serving(Hub(files=files)) as server:
        yield server


def begun(hub: Hub, model: str, folder: Path, **options: Any) -> Path:
    usual: dict[str, Any] = {"cache_dir": folder / "cache", "offline": False, "progress": None, "endpoint": hub.url}
    return fetch_beginning(model, folder, gguf.holds_header, **{**usual, **options})


def asked_of(hub: Hub) -> list[str]:
    """The parts of files that were asked for since the last call."""
    parts = [part for method, _, part in hub.requests if part]
    hub.requests.clear()
    return parts


def test_a_header_comes_without_the_weights(hub: Hub, tmp_path: Path) -> None:
    asked_of(hub)
    path = begun(hub, "hf:maker/one/small.gguf", tmp_path)
    assert asked_of(hub) == ["bytes=0-1048575"] and path.stat().st_size == 2**20
    with gguf.open(path, header_only=True) as file:
        assert file.tensors["weight0"].shape == (DATA // 4,) and len(file.metadata["tokenizer.ggml.tokens"]) == 10
    assert not (tmp_path / "cache").exists()


def test_more_is_read_until_the_header_is_whole(hub: Hub, tmp_path: Path) -> None:
    asked_of(hub)
    told: list[tuple[str, int, int | None]] = []
    path = begun(hub, "hf:maker/one/large.gguf", tmp_path, progress=lambda *call: told.append(call))
    assert asked_of(hub) == ["bytes=0-1048575", "bytes=1048576-4194303"]
    assert path.read_bytes() == hub.files["maker/one"]["large.gguf"][:4194304]
    label = "Reading the header of large.gguf"
    assert told[1:] == [(label, 2**20, None), (label, 2**22, None)]


def test_a_connection_that_breaks_off_is_taken_up(hub: Hub, tmp_path: Path) -> None:
    asked_of(hub)
    hub.cut = True
    path = begun(hub, "hf:maker/one/small.gguf", tmp_path)
    assert asked_of(hub)[0] == "bytes=0-1048575" and gguf.holds_header(path)
    kept = path.read_bytes()
    assert kept == hub.files["maker/one"]["small.gguf"][: len(kept)] and len(kept) <= 2**20


def test_every_part_of_a_split_model_begins(hub: Hub, tmp_path: Path) -> None:
    path = begun(hub, "hf:maker/split:Q4_0", tmp_path)
    with gguf.open(path, header_only=True) as file:
        assert list(file.tensors) == ["weight0", "weight1"]
    assert [part.stat().st_size for part in file.paths] == [2**20, 2**20]


def test_a_copy_in_the_cache_is_used(hub: Hub, tmp_path: Path) -> None:
    where: Any = {"cache_dir": tmp_path / "cache", "offline": False, "progress": None, "endpoint": hub.url}
    whole = fetch("hf:maker/one/small.gguf", refresh=False, **where)
    hub.requests.clear()
    assert begun(hub, "hf:maker/one/small.gguf", tmp_path) == whole
    assert begun(hub, "hf:maker/one/small.gguf", tmp_path, offline=True) == whole
    assert not hub.requests


def test_a_file_that_ends_in_its_header_is_read_to_its_end(hub: Hub, tmp_path: Path) -> None:
    path = begun(hub, "hf:maker/one/cut.gguf", tmp_path)
    assert path.stat().st_size == 2_000_000
    with pytest.raises(gguf.GGUFError, match="the file is damaged or incomplete"):
        gguf.open(path, header_only=True)


def test_what_cannot_be_begun_is_one_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "MOST_BYTES", 2**21)  # in place of 128 MiB, which nobody wants to serve
    refused = {
        "hf:maker/one/endless.gguf": "must end within its first 2 MiB, and does not; download the file",
        "hf:maker/one/absent.gguf": "hf:maker/one holds no file absent.gguf",
        "hf:maker/absent/x.gguf": "hf:maker/absent does not exist or is private",
    }
    for model, message in refused.items():
        with pytest.raises(SourceError, match=message):
            begun(hub, model, tmp_path)
    with pytest.raises(gguf.GGUFError, match="it is a web page"):
        begun(hub, "hf:maker/one/page.gguf", tmp_path)
    with pytest.raises(SourceError, match="is not in the Hugging Face cache and downloading is off"):
        begun(hub, "hf:maker/one/small.gguf", tmp_path, offline=True)


def test_a_server_without_parts_of_files_is_not_read_whole(hub: Hub, tmp_path: Path) -> None:
    refused = pytest.raises(SourceError, match="cannot be read in parts, its server answers status 200; download it")
    with serving(Hub(files=hub.files, ranges=False)) as server, refused:
        begun(server, "hf:maker/one/small.gguf", tmp_path)
    assert not (tmp_path / "small.gguf").exists()


def test_no_more_is_taken_than_was_asked_for(hub: Hub, tmp_path: Path) -> None:
    with serving(Hub(files=hub.files, generous=True)) as server:
        path = begun(server, "hf:maker/one/small.gguf", tmp_path)
    assert path.read_bytes() == hub.files["maker/one"]["small.gguf"][: 2**20]


def test_realm_plan_reads_the_header_alone(hub: Hub, tmp_path: Path) -> None:
    own = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "REALM_CACHE_DIR": str(tmp_path / "cache")}
    words = ["plan", "hf:maker/one/tiny.gguf", "--target", "h100", "--no-compile", "--json"]
    done = subprocess.run([*REALM, *words], env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["fits"] and planned["model"]["layers"] == tiny_chat.LAYERS
    missing = subprocess.run(
        [*REALM, *words, "--offline"], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert "hf:maker/one/tiny.gguf is not in the Hugging Face cache and downloading is off" in missing.stderr
