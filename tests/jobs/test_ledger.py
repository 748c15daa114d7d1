"""A ledger writes one answer for each line, whatever comes twice, late, or after its process was killed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from realm_jax.jobs.ledger import JobSummary, Ledger
from realm_jax.jobs.lines import BatchLine

URL = "/v1/completions"


def request(custom_id: str) -> str:
    return json.dumps({"custom_id": custom_id, "url": URL, "body": {"prompt": custom_id}})


def answer(line: BatchLine, text: str = "", code: str | None = None) -> dict[str, Any]:
    """What a worker says of a line."""
    error = None if code is None else {"code": code, "message": text}
    return {"id": line.id, "custom_id": line.custom_id, "response": None if code else text, "error": error}


def write(folder: Path, lines: list[str]) -> tuple[Path, Path]:
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder / "in.jsonl", folder / "out.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_only_the_first_answer_of_a_line_counts(tmp_path: Path) -> None:
    source, target = write(tmp_path, [request("a"), request("b"), "broken", request("a")])
    with Ledger(source, target) as ledger:
        lines = list(ledger.unanswered())
        assert [line.custom_id for line in lines] == ["a", "b"]
        assert ledger.summary == JobSummary(answered=0, failed=2, before=0) and ledger.waiting == 2
        first, second = lines
        assert ledger.take(answer(first, "one")) and ledger.take(answer(second, "refused", "invalid_request"))
        assert not ledger.take(answer(first, "two")) and not ledger.take(answer(second, "two"))
        assert ledger.summary == JobSummary(answered=1, failed=3, before=0) and ledger.waiting == 0
    with Ledger(source, target) as ledger:
        assert list(ledger.unanswered()) == [] and ledger.summary == JobSummary(answered=0, failed=0, before=4)
        assert not ledger.take(answer(first, "three"))
    assert [(found["id"], found["response"]) for found in read(target)] == [
        *(("line-3", None), ("line-4", None), ("line-1", "one"), ("line-2", None)),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_that_are_answered_again_and_runs_that_are_killed_leave_one_answer_each(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    texts = [request(f"r{number}") for number in range(60)] + [request(f"r{number}") for number in range(5)]
    texts += ["broken"] * 3
    rng.shuffle(texts)
    source, target = write(tmp_path, texts)
    answered = 0
    while True:
        with Ledger(source, target) as ledger:
            lines = list(ledger.unanswered())
            blocks = [lines[start : start + 7] for start in range(0, len(lines), 7)]
            deliveries = blocks * 2
            rng.shuffle(deliveries)
            end = rng.randrange(len(deliveries) + 1)  # the run is killed there
            for block in deliveries[:end]:
                answered += sum(ledger.take(answer(line, f"{seed} {rng.random()}")) for line in block)
        if not lines:
            break
        if rng.random() < 0.5:  # what a killed process leaves of a line
            whole = target.read_bytes()
            target.write_bytes(whole + whole.splitlines()[0][:20])
    assert answered == 60
    assert sorted(found["id"] for found in read(target)) == sorted(f"line-{n + 1}" for n in range(len(texts)))


def test_a_refused_file_of_answers_is_let_go(tmp_path: Path) -> None:
    source, target = write(tmp_path, [request("a")])
    target.write_text('{"some": "thing"}\n')
    with pytest.raises(ValueError, match="lines that are no answers"):
        Ledger(source, target)
    target.write_text("")
    with Ledger(source, target), pytest.raises(RuntimeError, match="is being written by another process"):
        Ledger(source, target)
