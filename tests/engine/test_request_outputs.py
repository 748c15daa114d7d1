"""Outputs of a request: everything so far, what is new, or the end alone; each stays what it was when it was made."""

from typing import Any

import pytest
import tiny_chat

from realm_jax import gguf
from realm_jax.engine import Request, RequestFactory
from realm_jax.engine.sequence import TokenLogprobs
from realm_jax.outputs import RequestOutput
from realm_jax.sampling import RequestOutputKind, SamplingParams
from realm_jax.tokenizer import Tokenizer

TEXT = "hello"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(gguf.open(tiny_chat.write(tmp_path_factory.mktemp("outputs") / "tiny.gguf")).metadata)


def request_of(tokenizer: Tokenizer, kind: RequestOutputKind, **options: Any) -> Request:
    factory = RequestFactory(tokenizer, vocab_size=256, max_model_len=64, seed=0)
    params = SamplingParams(max_tokens=len(TEXT), ignore_eos=True, logprobs=0, output_kind=kind, **options)
    return factory.make({"prompt_token_ids": [1, 2, 3]}, params)


def write(request: Request, tokenizer: Tokenizer, sample: int = 0) -> None:
    """Give a sample its next token."""
    sequence = request.sequences[sample]
    token = tokenizer.encode(TEXT, add_special=False)[len(sequence.output_token_ids)]
    at = float(-len(sequence.output_token_ids))
    sequence.append(token, TokenLogprobs(token=at, rank=1, top_ids=(), top=()))


def told(output: RequestOutput | None, sample: int = 0) -> tuple[str, list[int], list[float]]:
    assert output is not None
    one = output.outputs[sample]
    assert one.logprobs is not None and one.cumulative_logprob is not None
    logprobs = [table[token].logprob for token, table in zip(one.token_ids, one.logprobs, strict=True)]
    assert one.cumulative_logprob == sum(logprobs) and repr(one.text) in repr(one)
    return one.text, one.token_ids, logprobs


def test_outputs_have_everything_so_far_and_stay_as_they_are(tokenizer: Tokenizer) -> None:
    request = request_of(tokenizer, RequestOutputKind.CUMULATIVE)
    ids = tokenizer.encode(TEXT, add_special=False)
    assert len(ids) == len(TEXT)
    outputs = []
    for _ in TEXT:
        write(request, tokenizer)
        outputs.append(request.news())
    for count, output in enumerate(outputs, start=1):
        assert told(output) == (TEXT[:count], ids[:count], [float(-i) for i in range(count)])
        assert output is not None and output.finished == (count == len(TEXT))
        assert (output.outputs[0].finish_reason == "length") == output.finished


def test_deltas_have_what_is_new_and_can_be_joined(tokenizer: Tokenizer) -> None:
    request = request_of(tokenizer, RequestOutputKind.DELTA, n=2)
    ids = tokenizer.encode(TEXT, add_special=False)
    write(request, tokenizer)
    first = request.news()
    write(request, tokenizer)
    write(request, tokenizer)
    write(request, tokenizer, sample=1)
    second = request.news()
    assert first is not None and second is not None
    assert told(first) == ("h", ids[:1], [0.0]) and told(first, 1) == ("", [], [])
    assert told(second) == ("el", ids[1:3], [-1.0, -2.0]) and told(second, 1) == ("h", ids[:1], [0.0])
    both = second.joined(first)
    assert told(both) == ("hel", ids[:3], [0.0, -1.0, -2.0]) and told(both, 1) == ("h", ids[:1], [0.0])
    assert told(request.output()) == told(both)
    request.sequences[0].finish("abort")
    last = request.news()
    assert told(last) == ("", [], []) and last is not None and last.outputs[0].finish_reason == "abort"


def test_the_end_alone(tokenizer: Tokenizer) -> None:
    request = request_of(tokenizer, RequestOutputKind.FINAL_ONLY)
    for _ in TEXT[:-1]:
        write(request, tokenizer)
        assert request.news() is None
    write(request, tokenizer)
    assert told(request.news())[0] == TEXT


def test_kinds_are_those_of_vllm() -> None:
    assert {kind.name: kind.value for kind in RequestOutputKind} == {"CUMULATIVE": 0, "DELTA": 1, "FINAL_ONLY": 2}
