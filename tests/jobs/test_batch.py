"""A batch file is answered line by line, each once, also by processes that are killed."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_chat

from realm_jax import LLM, SamplingParams
from realm_jax.jobs import JobSummary, run_batch

ROOT = Path(__file__).parents[2]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(model, max_num_seqs=4, block_size=16, implementation="xla", quiet=True)


def request(custom_id: str, url: str = TEXT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "any", **body}}


def chat(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    return request(custom_id, CHAT, messages=[{"role": "user", "content": text}], **body)


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(llm: LLM, folder: Path, lines: list[Any], **options: Any) -> tuple[JobSummary, dict[str, dict[str, Any]]]:
    summary = run_batch(llm, write(folder / "in.jsonl", lines), folder / "out.jsonl", **options)
    answers = read(folder / "out.jsonl")
    assert len({answer["id"] for answer in answers}) == len(answers)
    return summary, {answer["id"]: answer for answer in answers}


def test_requests_are_answered_in_openais_form(llm: LLM, tmp_path: Path) -> None:
    lines = [
        request("t", prompt="hi there", max_tokens=6, temperature=0, logprobs=2, ignore_eos=True),
        chat("c", "hi", max_tokens=5, temperature=0, logprobs=True, top_logprobs=3, ignore_eos=True),
        request("ids", prompt=[104, 105], max_tokens=3, n=2, seed=4),
        request("default", CHAT, messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}], stop="a"),
    ]
    summary, answers = run(llm, tmp_path, lines)
    assert summary == JobSummary(answered=4, failed=0, before=0)
    assert [answers[f"line-{i + 1}"]["custom_id"] for i in range(4)] == ["t", "c", "ids", "default"]
    assert all(a["error"] is None and a["response"]["status_code"] == 200 for a in answers.values())
    text, talk, ids, _ = (answers[f"line-{i + 1}"]["response"]["body"] for i in range(4))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
    expected = llm.generate("hi there", params)[0].outputs[0]
    (choice,) = text["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, "length")
    assert (text["object"], text["model"], talk["object"]) == ("text_completion", "tiny", "chat.completion")
    assert text["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(expected.cumulative_logprob, abs=1e-3)
    # Tokens that are parts of a character read alike, and OpenAI's form has one entry for each text.
    assert [1 <= len(top) <= 3 for top in choice["logprobs"]["top_logprobs"]] == [True] * 6
    told = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    message = talk["choices"][0]["message"]
    assert message == {"role": "assistant", "content": told[0].outputs[0].text}
    assert [len(row["top_logprobs"]) >= 3 for row in talk["choices"][0]["logprobs"]["content"]] == [True] * 5
    assert [choice["index"] for choice in ids["choices"]] == [0, 1] and ids["usage"]["completion_tokens"] == 6


BAD = [
    ("not json", None, "invalid_json", "must be JSON"),
    ("[1, 2]", None, "invalid_line", "must be an object, got list"),
    ({"url": TEXT, "body": {}}, None, "missing_custom_id", "custom_id must be a text, got None"),
    (
        {"custom_id": "u", "url": "/v1/embeddings", "body": {}},
        "u",
        "invalid_url",
        "url must be /v1/chat/completions or",
    ),
    ({"custom_id": "m", "method": "GET", "url": TEXT, "body": {}}, "m", "invalid_method", "must be POST"),
    ({"custom_id": "b", "url": TEXT, "body": "x"}, "b", "invalid_body", "body must be an object"),
    (request("p"), "p", "invalid_request", "prompt must be one text"),
    (request("l", prompt="x" * 300), "l", "invalid_request", "the prompt has 300 tokens"),
    (request("t", prompt="x", temperature=-1), "t", "invalid_request", "temperature must be"),
    (request("f", prompt="x", best_of=3), "f", "invalid_request", "not supported: best_of"),
    (request("s", prompt="x", stream=True), "s", "invalid_request", "not supported: stream"),
    (request("e", CHAT, messages=[]), "e", "invalid_request", "messages must be"),
    (
        request("i", CHAT, messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "i",
        "invalid_request",
        "texts",
    ),
    (chat("j", "x", response_format={"type": "xml"}), "j", "invalid_request", "response_format must be of type"),
]


def test_what_is_no_request_is_answered_with_an_error(llm: LLM, tmp_path: Path) -> None:
    good = request("good", prompt="hi", max_tokens=2)
    lines = [line for line, *_ in BAD]
    lines = [good, "", *lines, request("good", prompt="again"), request("u", prompt="again"), good]
    summary, answers = run(llm, tmp_path, lines)
    assert summary == JobSummary(answered=1, failed=len(BAD) + 3, before=0)
    assert answers["line-1"]["error"] is None and "line-2" not in answers
    for number, (_, custom_id, code, message) in enumerate(BAD, start=3):
        answer = answers[f"line-{number}"]
        assert (answer["custom_id"], answer["response"], answer["error"]["code"]) == (custom_id, None, code)
        assert message in answer["error"]["message"]
    for number, custom_id in enumerate(("good", "u", "good"), start=3 + len(BAD)):
        answer = answers[f"line-{number}"]
        assert (answer["custom_id"], answer["error"]["code"]) == (custom_id, "duplicate_custom_id")
    before = (tmp_path / "out.jsonl").read_bytes()
    summary, _ = run(llm, tmp_path, lines)
    assert summary == JobSummary(answered=0, failed=0, before=len(BAD) + 4)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_job_that_was_cut_goes_on_and_draws_the_same(llm: LLM, tmp_path: Path) -> None:
    lines = [request(f"r{i}", prompt=f"hi {i}", max_tokens=8, ignore_eos=True) for i in range(12)]
    (tmp_path / "whole").mkdir()
    _, whole = run(llm, tmp_path / "whole", lines)
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps(whole[f"line-{i}"]) + "\n" for i in (3, 7, 1)) + json.dumps(whole["line-2"])[:50])
    summary, answers = run(llm, tmp_path, lines)
    assert summary == JobSummary(answered=9, failed=0, before=3)
    texts = [[found[f"line-{i + 1}"]["response"]["body"]["choices"] for i in range(12)] for found in (whole, answers)]
    assert texts[0] == texts[1]


def test_answers_do_not_go_where_they_do_not_belong(llm: LLM, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [request("a", prompt="hi")])
    with pytest.raises(ValueError, match="must not go into the file of the requests"):
        run_batch(llm, source, source)
    other = write(tmp_path / "other.jsonl", [{"some": "thing"}])
    with pytest.raises(ValueError, match="lines that are no answers"):
        run_batch(llm, source, other)
    assert read(other) == [{"some": "thing"}] and len(read(source)) == 1


def test_a_process_killed_at_any_moment_answers_every_line_once(model: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    lines: list[Any] = [chat(f"c{i}", f"hi {i}", max_tokens=rng.randrange(1, 30)) for i in range(60)]
    lines += [request(f"t{i}", prompt="x" * rng.randrange(1, 200), n=2) for i in range(60)]
    lines += ["broken", request("c5", prompt="again"), request("long", prompt="x" * 999)]
    rng.shuffle(lines)
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "REALM_CACHE_DIR": str(tmp_path / "cache")}
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", "import sys; from realm_jax.cli import main; sys.exit(main())", "batch"]
    command += [str(source), str(target), "--model", str(model), "--implementation", "xla"]
    kills = 0
    while True:
        size = target.stat().st_size if target.exists() else 0
        process = subprocess.Popen(command, env={**os.environ, **own, **kept}, stderr=subprocess.PIPE)
        if kills < 5:
            while process.poll() is None and (not target.exists() or target.stat().st_size <= size):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.2)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        kills += 1
    assert kills >= 3
    answers = read(target)
    assert sorted(answer["id"] for answer in answers) == sorted(f"line-{i + 1}" for i in range(len(lines)))
    errors = collections.Counter(answer["error"]["code"] for answer in answers if answer["error"])
    assert errors == {"invalid_json": 1, "duplicate_custom_id": 1, "invalid_request": 1}
