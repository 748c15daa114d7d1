"""The task of questions: what is drawn, how a server's answers are read, and that every program gives the same."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import questions
from benchmarks.questions_program import Assignment
from benchmarks.questions_server import continuation_logprob
from benchmarks.questions_task import Question, Task


def test_a_task_is_drawn_from_its_seed() -> None:
    task = Task.drawn()
    assert task == Task.drawn() != Task.drawn(seed=1)
    assert len(task.questions) == len({question.text for question in task.questions}) == 200
    assert all(len(set(question.answers)) == 4 for question in task.questions)
    assert {question.right for question in task.questions} == {0, 1, 2, 3}
    assert task.prefix.count("Question:") == task.prefix.count("\n\n") == 24
    assert not any(question.text in task.prefix for question in task.questions)
    with pytest.raises(ValueError, match=r"count \+ examples must be at most 243, got 243 \+ 1"):
        Task.drawn(243, examples=1)


def test_every_answer_is_a_request_behind_the_prefix() -> None:
    task = Task.drawn(5, examples=2, begin="<begin>")
    assert task.prefix.startswith("<begin>Question:") and len(task.requests) == 20
    assert all(context.startswith(task.prefix) and context.endswith("\nAnswer:") for context, _ in task.requests)
    assert [answer for _, answer in task.requests[4:8]] == list(task.questions[1].answers)


def test_the_most_probable_answer_counts() -> None:
    asked = [Question(text="?", answers=(" a", " b"), right=right) for right in (0, 1)]
    task = Task(prefix="", questions=asked)
    assert task.accuracy([-1.0, -2.0, -1.0, -2.0]) == 0.5
    assert task.accuracy([-1.0, -2.0, -2.0, -1.0]) == 1.0


@pytest.mark.parametrize("begin", ["", "<s>", "--questions", "two words"])
@pytest.mark.parametrize("requests", [None, 3])
def test_an_assignment_survives_the_way_to_another_process(begin: str, requests: int | None) -> None:
    given = Assignment(model=Path("a model.gguf"), questions=7, begin=begin, requests=requests)
    assert Assignment.parse("", given.words) == given
    assert given.task() == Task.drawn(7, begin=begin) and given.task(seed=1) == Task.drawn(7, seed=1, begin=begin)


def echoed(offsets: list[int], values: list[float | None]) -> dict[str, Any]:
    return {"choices": [{"text": "...", "logprobs": {"text_offset": offsets, "token_logprobs": values}}]}


def test_a_continuation_is_cut_out_of_what_a_server_echoes() -> None:
    answer = echoed([0, 4, 9, 12, 15], [None, -1.0, -2.0, -4.0, -8.0])
    assert continuation_logprob(answer, 9, 15) == -6.0  # the last token was generated
    assert continuation_logprob(answer, 9, 20) == -14.0  # or belongs to the text
    with pytest.raises(ValueError, match=r"must begin at characters 13 to 15, got offsets \[0, 4, 9, 12, 15\]"):
        continuation_logprob(answer, 13, 15)
    with pytest.raises(ValueError, match="must begin at characters 0 to 9"):
        continuation_logprob(answer, 0, 9)
    for ignoring in ({"choices": [{"logprobs": None}]}, {"choices": [{"logprobs": {"content": [{"logprob": -1.0}]}}]}):
        with pytest.raises(ValueError, match="this one sent none"):
            continuation_logprob(ignoring, 0, 9)


def test_results_are_reported_for_each_program() -> None:
    task = Task.drawn(1, examples=1)
    right = [-1.0 if number == task.questions[0].right else -2.0 for number in range(4)]
    ours = questions._result(task, [{"seconds": s, "logprobs": right, "version": "1"} for s in (1.0, 3.0)], right)
    assert ours["accuracy"] == 1 and ours["milliseconds_a_request"] == 500 and ours["largest_abs_difference"] == 0
    some = questions._result(task, [{"seconds": 6.0, "logprobs": [-3.0, -5.0], "version": "2"}], right)
    assert some["accuracy"] is None and some["requests"] == 2
    assert some["mean_abs_difference"] == pytest.approx((abs(right[0] + 3) + abs(right[1] + 5)) / 2)
    drawn = questions.tables([{"model": "m", "program": "a"} | ours, {"model": "m", "program": "b"} | some])
    assert "2.00 (1.00-3.00)" in drawn and "100.0%" in drawn


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the bench extra")
def test_all_programs_answer_a_task(smollm2_path: Path) -> None:
    settings: Any = {"rounds": 1, "peer": sys.executable, "server_requests": 1}
    # The server reads the log-probabilities of texts without a begin token one position late.
    ours, peer, server = questions.measure(smollm2_path, count=10, begin="<|im_start|>", **settings)
    assert [result["requests"] for result in (ours, peer, server)] == [40, 40, 1]
    # Each rounds activations to 8 bits in its own way: a tenth of a nat for a token, and an answer has one to four.
    assert peer["mean_abs_difference"] < 0.3 and server["mean_abs_difference"] < 0.5
