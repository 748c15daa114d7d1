"""Owns the tests of `realm generate`: what it prints, what it refuses, how it stops."""

from pathlib import Path

import pytest
import tiny_chat
from conftest import Realm


@pytest.fixture
def generate(realm: Realm, tiny: str) -> Realm:
    """Run `realm generate` on the tiny model."""

    def run(*words: str, stdin: bytes = b"") -> object:
        return realm("generate", tiny, "-n", "6", *words, stdin=stdin)

    return run


def test_the_text_goes_to_stdout_and_its_speed_to_stderr(generate: Realm) -> None:
    plain, reported = generate("--prompt", "hi there"), generate("--prompt", "hi there", "--json").json
    assert plain.code == 0
    assert plain.out == reported["text"] + "\n"
    assert plain.err.startswith("7 prompt tokens; 6 generated at ") and plain.err.count("\n") == 1


def test_json_is_one_object_with_tokens_and_timings(generate: Realm) -> None:
    outcome = generate("--prompt", "hi there", "--json")
    reply = outcome.json
    assert outcome.err == ""
    assert reply["prompt_token_ids"] == [247, *b" there"]
    assert len(reply["token_ids"]) == 6 and reply["finish_reason"] == "length"
    timings = reply["timings"]
    assert timings["load_seconds"] > 0 and timings["first_token_seconds"] > 0
    assert timings["decode_tokens_per_second"] == pytest.approx(5 / timings["decode_seconds"])


def test_a_prompt_from_a_file_loses_its_last_line_end(generate: Realm, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"hi\n\r\n")
    assert generate("--file", str(tmp_path / "prompt"), "--json").json["prompt_token_ids"] == [247, 10]
    assert generate("--file", "-", "--json", stdin=b"hi").json["prompt_token_ids"] == [247]


def test_the_chat_template_is_used_when_asked_for(generate: Realm) -> None:
    reply = generate("--prompt", "hi", "--chat", "--system", "be", "--json").json
    expected = [0xF5, *b"system\nbe", 0xF6, 10, 0xF5, *b"user\n", 247, 0xF6, 10, 0xF5, *b"assistant\n"]
    assert reply["prompt_token_ids"] == expected
    assert generate("--prompt", "hi", "--system", "be").code == 2


def test_a_seed_repeats_the_text(generate: Realm) -> None:
    def drawn(*words: str) -> list[int]:
        # so hot that tokens are nearly equally probable: six alike have a chance of about 256^-6
        return generate("--prompt", "hi", "--temperature", "1000", "--json", *words).json["token_ids"]

    seeded = drawn("--seed", "7")
    assert drawn("--seed", "7") == seeded
    assert drawn() != seeded, "without a seed each run draws its own"


def test_a_stop_string_ends_the_text(generate: Realm) -> None:
    whole = generate("--prompt", "hi", "--json", "--ignore-eos").json["text"]
    stopped = generate("--prompt", "hi", "--json", "--ignore-eos", "--stop", whole[2]).json
    assert stopped["text"] == whole[: whole.index(whole[2])] and stopped["finish_reason"] == "stop"


def test_a_prompt_longer_than_the_context_is_refused(realm: Realm, generate: Realm) -> None:
    generate("--prompt", "x" * (tiny_chat.CONTEXT + 1)).assert_refused("the prompt has 257 tokens")
    generate("--prompt", "x" * 9, "--max-model-len", "8").assert_refused("the prompt has 9 tokens")


def test_an_empty_prompt_is_refused_where_the_model_adds_no_token(generate: Realm) -> None:
    generate("--prompt", "").assert_refused("the prompt is empty")


def test_no_prompt_or_two_are_a_wrong_command_line(generate: Realm, tmp_path: Path) -> None:
    assert generate().code == 2
    assert generate("--prompt", "hi", "--file", str(tmp_path)).code == 2


def test_invalid_utf8_is_refused_before_the_model_is_loaded(realm_process: Realm, tiny: str) -> None:
    wrong = realm_process("generate", tiny, "--prompt", b"a\xff")
    wrong.assert_refused("--prompt must be valid UTF-8, got byte 0xff at character 2")
    wrong = realm_process("generate", tiny, "--file", "-", stdin=b"\xff\xfe")
    wrong.assert_refused("standard input must be valid UTF-8, got byte 0xff at offset 0")


def test_files_that_cannot_run_are_refused(realm: Realm, tiny: str, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("This is not a model at all, but someone gave it the name of one.\n")
    realm("generate", str(text), "--prompt", "hi").assert_refused("must start with b'GGUF'")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(tiny).read_bytes()[:100_000])
    realm("generate", str(cut), "--prompt", "hi").assert_refused("but the file has 100000 bytes")
    realm("generate", str(tmp_path / "absent.gguf"), "--prompt", "hi").assert_refused("the model file must exist")
    odd = tiny_chat.write(tmp_path / "odd.gguf", architecture="odd")
    realm("generate", str(odd), "--prompt", "hi").assert_refused("architecture 'odd' is not supported; supported are ")
    bare = tiny_chat.write(tmp_path / "bare.gguf", chat_template=None)
    realm("generate", str(bare), "--prompt", "hi", "--chat").assert_refused("the model's file has none")


def test_unknown_settings_are_refused(generate: Realm) -> None:
    generate("--prompt", "hi", "--dtype", "float8").assert_refused("dtype must be")
    generate("--prompt", "hi", "--implementation", "magic").assert_refused("implementation must be one of")


def test_an_unwritable_cache_folder_is_refused_only_where_it_is_needed(
    generate: Realm, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALM_CACHE_DIR", "/proc/none")
    assert generate("--prompt", "hi").code == 0
    realm("generate", "smollm2", "--prompt", "hi").assert_refused("the cache folder must be writable to download")


def test_an_interrupt_is_exit_code_130(generate: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("realm_jax.cli.generate.stream_reply", interrupt)
    assert generate("--prompt", "hi").code == 130


def test_keys_and_values_may_have_8_bits(generate: Realm) -> None:
    words = ("--prompt", "hi", "--implementation", "xla", "--kv-cache-dtype")
    assert len(generate(*words, "q8_0", "--json").json["token_ids"]) == 6
    refused = generate(*words, "q4_0")
    assert refused.code == 1 and "kv_cache_dtype must be auto or one of float32" in refused.err
