"""Owns the tests of what a user may call a model: paths, catalogue names and wrong names."""

from pathlib import Path

import pytest

from realm_jax import sources
from realm_jax.sources import SourceError, resolve


def test_a_path_is_returned_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(file) == file
    assert resolve(str(file)) == file


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model.gguf") == tmp_path / "model.gguf"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must exist, got .*absent\.gguf"):
        resolve(tmp_path / "absent.gguf")


def test_a_folder_lists_the_models_in_it(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"must be a file, got the folder .*: one\.gguf"):
        resolve(tmp_path)


def test_an_unknown_name_lists_the_catalogue_and_the_forms() -> None:
    with pytest.raises(SourceError, match="unknown model 'smollm3'") as caught:
        resolve("smollm3")
    for name in (*sources.CATALOGUE, "hf:owner/repo:Q4_K_M", ".gguf"):
        assert name in str(caught.value)


def test_the_cache_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.default_cache_dir() == tmp_path / "realm-jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.default_cache_dir() == tmp_path / ".cache" / "realm-jax"
