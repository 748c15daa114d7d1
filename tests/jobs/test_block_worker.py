"""A worker answers a block as the local job answers its lines, and says what ends the job; needs no Ray."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from realm_jax import LLM
from realm_jax.jobs import run_batch
from realm_jax.jobs.block_worker import ANSWERS, FAULT, LINES, BlockWorker, block_of
from realm_jax.jobs.ledger import Ledger

SETTINGS = {"max_num_seqs": 4, "implementation": "xla"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_chat.write(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def answers_of(worker: BlockWorker, *blocks: str) -> list[dict[str, Any]]:
    found = worker({LINES: np.array(blocks, dtype=object)})
    assert list(found) == [ANSWERS] and all(text.isascii() for text in found[ANSWERS])
    return [answer for text in found[ANSWERS] for answer in json.loads(text)]


def without_times(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for answer in answers:
        if answer["response"]:
            del answer["response"]["body"]["created"]
    return answers


def test_blocks_are_answered_in_their_order_as_by_the_local_job(model: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"prompt": f"hé {i}", "max_tokens": 9 - i, "n": 1 + i % 2, "ignore_eos": True} for i in range(9)]
    bodies[4] = {"prompt": "x" * 300}
    lines = [{"custom_id": f"r{i}", "url": "/v1/completions", "body": body} for i, body in enumerate(bodies)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Ledger(source, tmp_path / "unused.jsonl") as ledger:
        requests = list(ledger.unanswered())
    worker = pickle.loads(pickle.dumps(BlockWorker))(model, 3, SETTINGS)
    answers = answers_of(worker, block_of(requests[:5]), block_of(requests[5:]))
    assert [answer["id"] for answer in answers] == [f"line-{i + 1}" for i in range(9)]
    assert answers[4]["error"]["code"] == "invalid_request" and "300 tokens" in answers[4]["error"]["message"]
    run_batch(LLM(model, quiet=True, **SETTINGS), source, target, seed=3)
    local = sorted((json.loads(text) for text in target.read_text().splitlines()), key=lambda answer: answer["id"])
    assert without_times(answers) == without_times(local)


def test_a_model_that_is_not_there_is_said_for_every_block(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.gguf")
    worker = BlockWorker(absent, 0, SETTINGS)
    for _ in range(2):
        (row,) = answers_of(worker, block_of([]))
        assert list(row) == [FAULT]
        assert f"must be able to load {absent}" in row[FAULT] and "the model file must exist" in row[FAULT]
