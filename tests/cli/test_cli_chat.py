"""Owns the tests of `realm chat`: its commands, its JSON lines, and Ctrl-C during a reply."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from conftest import Outcome, Realm

from realm_jax import LLM, SamplingParams
from realm_jax.cli.interrupts import stop_on_interrupt
from realm_jax.cli.reply import stream_reply

USER = [0xF5, *b"user\n"]
ASSISTANT = [0xF5, *b"assistant\n"]
END = [0xF6, 10]


@pytest.fixture
def chat(realm: Realm, tiny: str) -> Realm:
    """Run `realm chat` on the tiny model with lines on its standard input."""

    def run(*lines: str | bytes, words: tuple[str, ...] = ("--json",)) -> Outcome:
        data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        return realm("chat", tiny, "-n", "2", "--temperature", "0", *words, stdin=data)

    return run


def replies(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_the_second_prompt_holds_the_first_reply(chat: Realm) -> None:
    first, second = replies(chat("a", "", "b"))
    assert first["prompt_token_ids"] == [*USER, *b"a", *END, *ASSISTANT]
    assert second["prompt_token_ids"][: len(first["prompt_token_ids"])] == first["prompt_token_ids"]
    assert second["prompt_token_ids"][-len([*USER, *b"b", *END, *ASSISTANT]) :] == [*USER, *b"b", *END, *ASSISTANT]


def test_commands(chat: Realm) -> None:
    outcome = chat("/help", "a", "/retry", "/reset", "/retry", "b", "/system be", "c", "/nonsense", "/exit", "d")
    prompts = [reply["prompt_token_ids"] for reply in replies(outcome)]
    plain = [[*USER, *letter, *END, *ASSISTANT] for letter in (b"a", b"a", b"b")]
    assert prompts[:3] == plain
    assert prompts[3:] == [[0xF5, *b"system\nbe", *END, *USER, *b"c", *END, *ASSISTANT]]
    for text in ("/retry         answer", "no message to answer again", "unknown command /nonsense"):
        assert text in outcome.err


def test_what_cannot_be_answered_is_said_and_forgotten(chat: Realm) -> None:
    outcome = chat(b"\xff", "x" * 300, "a")
    assert replies(outcome)[0]["prompt_token_ids"] == [*USER, *b"a", *END, *ASSISTANT]
    assert "a message must be valid UTF-8, got byte 0xff at character 1" in outcome.err
    assert "tokens, but max_model_len is 256" in outcome.err


def test_text_comes_plain_without_json(chat: Realm) -> None:
    plain, (reported,) = chat("a", words=()), replies(chat("a"))
    assert plain.out == reported["text"] + "\n"


def test_a_file_without_a_template_is_refused(realm: Realm, tmp_path: Path) -> None:
    bare = tiny_chat.write(tmp_path / "bare.gguf", chat_template=None)
    realm("chat", str(bare)).assert_refused("the model's file has none; use `realm generate`")


def test_ctrl_c_stops_the_reply_and_leaves_the_model_usable(tiny: str, kept_programs: None) -> None:
    llm = LLM(tiny, quiet=True, max_num_seqs=1)
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    whole = stream_reply(llm, "hi", params)
    with stop_on_interrupt() as stopped:
        cut = stream_reply(llm, "hi", params, write=write, stopped=stopped)
    assert cut.finish_reason == "abort" and cut.token_ids == whole.token_ids[:3]
    assert stream_reply(llm, "hi", params).token_ids == whole.token_ids


def test_ctrl_c_twice_breaks_off() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as stopped:
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
