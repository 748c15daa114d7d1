"""Owns the fixtures of the command line's tests: running `realm` here or in a process of its own, and a tiny model."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_chat
from jax.experimental.compilation_cache import compilation_cache

from realm_jax.cli import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def assert_refused(self, message: str) -> None:
        """Check that the command ended in one sentence on stderr, and nothing else."""
        assert (self.code, self.out) == (1, "")
        assert self.err.startswith("realm: ") and self.err.count("\n") == 1, self.err
        assert message in self.err
        assert "Traceback" not in self.err and "internal error" not in self.err


Realm = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model of 300 kB with a tokenizer and a chat template."""
    return str(tiny_chat.write(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(scope="session")
def kept_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled programs from one test to the next, as a user who chose a folder: the commands leave it alone."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for options in (chosen, before):
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if options is chosen:
            yield


@pytest.fixture
def realm(
    kept_programs: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Realm:
    """Run the command line in this process, with a cache folder of its own."""
    monkeypatch.setenv("REALM_CACHE_DIR", str(tmp_path / "cache"))

    def run(*words: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(words)
        out, err = capsys.readouterr()
        return Outcome(code=code, out=out, err=err)

    return run


@pytest.fixture
def realm_process(tmp_path: Path) -> Realm:
    """Run the command line in a process of its own; arguments and input may be any bytes."""

    def run(*words: str | bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Outcome:
        done = subprocess.run(
            [*command(), *words],
            input=stdin,
            capture_output=True,
            env={**process_environment(tmp_path), **(env or {})},
            check=False,
        )
        return Outcome(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


def command() -> list[str]:
    """The start of a command line that runs `realm` in a new process."""
    return [sys.executable, "-c", "import sys; from realm_jax.cli import main; sys.exit(main())"]


def process_environment(cache: Path) -> dict[str, str]:
    """The environment of such a process: this tree's packages, the CPU, a cache folder of its own."""
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "REALM_CACHE_DIR": str(cache / "cache")}
    return {**os.environ, **own}
