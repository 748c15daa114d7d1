"""Tokenisation of the two real models equals llama.cpp's recorded ids."""

import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).parents[1] / "data/tokenizer/golden.json").read_text("utf-8"))["models"]
CASES = [
    (fixture, entry["text"], entry["ids"])
    for fixture, model in (("smollm2", "smollm2-135m-q4_1"), ("gemma3", "gemma3-270m-q4_k_m"))
    for entry in GOLDEN[model]
]


@pytest.mark.parametrize(("fixture", "text", "ids"), CASES)
def test_encode_equals_the_recorded_ids(fixture, text, ids, request):
    assert request.getfixturevalue(fixture).encode(text) == ids


@pytest.mark.parametrize(("fixture", "text", "ids"), CASES)
def test_decode_gives_the_text_back(fixture, text, ids, request):
    tokenizer = request.getfixturevalue(fixture)
    begin = tokenizer.decode([tokenizer.bos_id]) if tokenizer.add_bos else ""
    assert tokenizer.decode(ids) == begin + text


def test_generation_ends_at_more_than_the_named_token(smollm2, gemma3):
    assert {smollm2.id_to_piece(i) for i in smollm2.end_ids} == {b"<|im_end|>", b"<|endoftext|>", b"<reponame>"}
    assert {b"<eos>", b"<end_of_turn>"} <= {gemma3.id_to_piece(i) for i in gemma3.end_ids}
