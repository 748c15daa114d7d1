"""Owns the tests of what all commands share: exit codes, errors, pipes, start-up, options."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import Realm, command, process_environment

from realm_jax.cli.errors import sentence

JAX_FREE = (["--help"], ["tokenize", "{tiny}", "hi"], ["inspect", "{tiny}"], ["pull", "{tiny}"])


def test_help_lists_every_command(realm: Realm) -> None:
    outcome = realm("--help")
    assert outcome.code == 0
    for name in ("generate", "chat", "tokenize", "inspect", "bench", "pull", "doctor"):
        assert f"\n  {name} " in outcome.out


def test_version(realm: Realm) -> None:
    outcome = realm("--version")
    assert outcome.code == 0 and outcome.out.startswith("realm-jax ")


@pytest.mark.parametrize("words", [["inspect"], ["nonsense"], ["inspect", "--nonsense", "x"], ["tokenize", "m.gguf"]])
def test_a_wrong_command_line_is_exit_code_2(realm: Realm, words: list[str]) -> None:
    outcome = realm(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Error: " in outcome.err


@pytest.mark.parametrize("words", JAX_FREE, ids=lambda words: words[0])
def test_no_jax_where_nothing_is_computed(tiny: str, tmp_path: Path, words: list[str]) -> None:
    filled = [word.format(tiny=tiny) for word in words]
    program = f"import sys; from realm_jax.cli import main; main({filled!r}); assert 'jax' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", program], env=process_environment(tmp_path), check=True, stdout=subprocess.PIPE
    )


def test_help_needs_no_heavy_package(tmp_path: Path) -> None:
    program = (
        "import sys; from realm_jax.cli import main; main(['--help'])\n"
        "print({'jax', 'numpy', 'rich', 'tokenizers', 'huggingface_hub'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=process_environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "set()"


def test_a_closed_pipe_is_silent(tiny: str, tmp_path: Path) -> None:
    environment = process_environment(tmp_path)
    words = [*command(), "inspect", "--json", "--full", tiny]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_debug_shows_the_traceback(realm: Realm, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.gguf")
    realm("inspect", absent).assert_refused("the model file must exist")
    with pytest.raises(ValueError, match="the model file must exist"):
        realm("inspect", absent, "--debug")


def test_sentences_are_one_line() -> None:
    assert sentence(ValueError("a must be b,\n got c")) == "a must be b, got c"
    assert sentence(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory: x"
    assert sentence(FileNotFoundError("3 shards are missing")) == "3 shards are missing"
    assert sentence(KeyError("x")).startswith("internal error, KeyError: 'x'")
    assert sentence(ZeroDivisionError()).startswith("internal error, ZeroDivisionError: no message")
    assert sentence(RuntimeError("there is no library")) == "there is no library"
    assert sentence(MemoryError()).startswith("not enough memory")
    assert sentence(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB")).startswith("not enough memory (RESOURCE")
    assert sentence(jax.errors.JaxRuntimeError("INTERNAL: no")).startswith("internal error, JaxRuntimeError: INTERNAL")
