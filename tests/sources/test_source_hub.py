"""Owns the tests of models on the Hugging Face hub, against a small server that speaks its protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serving

from realm_jax.sources import SourceError
from realm_jax.sources.hub import choose, fetch, parse

BIG = bytes(range(256)) * 98_304  # 25 MB: huggingface_hub keeps what came in pieces of 10 MB
FILES = {
    "maker/tiny": {
        "README.md": b"read me",
        "tiny-Q4_K_M.gguf": BIG,
        "tiny-Q8_0.gguf": b"GGUF eight",
        "mmproj-tiny-Q8_0.gguf": b"GGUF projector",
    },
    "maker/split": {f"Q4_0/big-Q4_0-0000{i}-of-00003.gguf": b"GGUF %d" % i for i in (1, 2, 3)},
    "maker/empty": {"README.md": b"no model"},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub(files=FILES, gated=frozenset({"maker/gated"}))) as server:
        yield server


def fetched(hub: Hub, model: str, cache: Path, *, offline: bool = False, refresh: bool = False) -> Path:
    return fetch(model, cache_dir=cache, offline=offline, refresh=refresh, progress=None, endpoint=hub.url)


def test_a_file_comes_with_its_progress(hub: Hub, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    path = fetch(
        "hf:maker/tiny/tiny-Q4_K_M.gguf",
        cache_dir=tmp_path,
        offline=False,
        refresh=False,
        progress=lambda *call: calls.append(call),
        endpoint=hub.url,
    )
    assert path.read_bytes() == BIG
    assert calls[-1] == ("Downloading tiny-Q4_K_M.gguf", len(BIG), len(BIG))


@pytest.mark.parametrize("quantisation", ["Q8_0", "q8_0"])
def test_a_quantisation_picks_its_file(hub: Hub, tmp_path: Path, quantisation: str) -> None:
    assert fetched(hub, f"hf:maker/tiny:{quantisation}", tmp_path).name == "tiny-Q8_0.gguf"


def test_a_split_model_comes_whole(hub: Hub, tmp_path: Path) -> None:
    path = fetched(hub, "hf:maker/split", tmp_path)
    assert path.name == "big-Q4_0-00001-of-00003.gguf"
    assert sorted(p.read_bytes() for p in path.parent.iterdir()) == [b"GGUF 1", b"GGUF 2", b"GGUF 3"]
    assert fetched(hub, "hf:maker/split:Q4_0", tmp_path, offline=True) == path


def test_a_part_of_a_split_model_brings_the_others(hub: Hub, tmp_path: Path) -> None:
    path = fetched(hub, "hf:maker/split/Q4_0/big-Q4_0-00002-of-00003.gguf", tmp_path)
    assert path.name == "big-Q4_0-00001-of-00003.gguf"
    assert len(list(path.parent.iterdir())) == 3


def test_a_cached_copy_is_used_without_asking(hub: Hub, tmp_path: Path) -> None:
    for model in ("hf:maker/tiny:Q8_0", "hf:maker/tiny/tiny-Q8_0.gguf"):
        path = fetched(hub, "hf:maker/tiny:Q8_0", tmp_path)
        asked = len(hub.requests)
        assert fetched(hub, model, tmp_path) == path
        assert fetched(hub, model, tmp_path, offline=True) == path
        assert len(hub.requests) == asked
        fetched(hub, model, tmp_path, refresh=True)
        assert len(hub.requests) > asked


def test_a_broken_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    hub.cut = True
    assert fetched(hub, "hf:maker/tiny:Q4_K_M", tmp_path).read_bytes() == BIG
    starts = [int(part.removeprefix("bytes=").split("-")[0]) for _, _, part in hub.requests if part]
    assert starts and 0 < starts[0] <= len(BIG) // 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf:maker/tiny:Q5_0", "of quantisation Q5_0, it holds: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf; name one as hf:"),
        ("hf:maker/tiny", "must hold one GGUF model, several fit: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf"),
        ("hf:maker/empty", "it holds: no .gguf file"),
        ("hf:maker/tiny/absent.gguf", "hf:maker/tiny holds no file absent.gguf"),
        ("hf:maker/absent:Q4_0", "hf:maker/absent does not exist or is private"),
        ("hf:maker/gated:Q4_0", "hf:maker/gated is gated; accept its terms"),
        ("hf:maker", "must be written hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M, got 'hf:maker'"),
        ("hf:maker/tiny/README.md", "must be written hf:"),
    ],
)
def test_what_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        fetched(hub, model, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["hf:maker/tiny:Q4_K_M", "hf:maker/tiny/tiny-Q4_K_M.gguf"])
def test_offline_without_a_copy_says_so(hub: Hub, tmp_path: Path, model: str) -> None:
    with pytest.raises(SourceError, match="not in the Hugging Face cache and downloading is off"):
        fetched(hub, model, tmp_path, offline=True)


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's library waits 23 s between its five tries
    nobody = Hub(files={}, url="http://127.0.0.1:9")  # the discard port: nobody listens
    for model in ("hf:maker/tiny:Q4_K_M", "hf:maker/tiny/tiny-Q4_K_M.gguf"):
        with pytest.raises(SourceError, match="the Hugging Face hub cannot be reached to fetch hf:maker/tiny; connect"):
            fetched(nobody, model, tmp_path)


def test_an_unwritable_cache_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(SourceError, match="the Hugging Face cache must be writable to download hf:maker/tiny"):
        fetched(hub, "hf:maker/tiny/tiny-Q8_0.gguf", blocked)


@pytest.mark.parametrize(
    ("wanted", "names", "chosen"),
    [
        ("Q4_K_M", ["m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m.Q4_K.gguf"], "m.Q4_K_M.gguf"),
        ("Q4_K", ["m.Q4_K_M.gguf", "m.Q4_K.gguf"], "m.Q4_K.gguf"),
        ("XS", ["m-IQ4_XS.gguf"], "m-IQ4_XS.gguf"),
        ("Q4_0", ["Q4_0/m-00001-of-00002.gguf", "Q4_0/m-00002-of-00002.gguf"], "Q4_0/m-00001-of-00002.gguf"),
        ("f16", ["ggml-model-f16.gguf", "ggml-model-bf16.gguf"], "ggml-model-f16.gguf"),
    ],
)
def test_choosing_matches_whole_words(wanted: str, names: list[str], chosen: str) -> None:
    assert choose(names, parse(f"hf:a/b:{wanted}")) == chosen
