"""What text goes in and comes out: stop strings, special tokens, conversations and streams."""

import pytest

from realm_jax import LLM, RequestOutputKind, SamplingParams

IM_START, IM_END = 0xF5, 0xF6


def greedy(bias: dict[int, float], **others: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=10, logit_bias=bias, **others)


@pytest.fixture(scope="module")
def text(llm: LLM, printable: dict[int, float]) -> str:
    """Ten characters, one a token, that the model writes after "hello"."""
    sample = llm.generate("hello", greedy(printable), use_tqdm=False)[0].outputs[0]
    assert sample.text == llm.tokenizer.decode(sample.token_ids) and len(sample.text) == 10
    return sample.text


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_ends_the_text_across_tokens(
    llm: LLM, printable: dict[int, float], text: str, included: bool
) -> None:
    stop = text[3:6]
    params = greedy(printable, stop=["never", stop], include_stop_str_in_output=included)
    sample = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
    end = text.index(stop)
    assert sample.text == text[: end + 3 * included]
    assert (sample.finish_reason, sample.stop_reason, len(sample.token_ids)) == ("stop", stop, end + 3)


def test_a_stream_grows_to_what_generate_gives(llm: LLM, printable: dict[int, float], text: str) -> None:
    outputs = list(llm.stream("hello", greedy(printable)))
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 11))
    assert [output.outputs[0].text for output in outputs] == [text[:count] for count in range(1, 11)]
    assert [output.finished for output in outputs] == [False] * 9 + [True]


def test_a_stream_tells_what_is_new_or_the_end_alone(llm: LLM, printable: dict[int, float], text: str) -> None:
    new, end = (greedy(printable, output_kind=kind) for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY))
    outputs = list(llm.stream("hello", new))
    assert [output.outputs[0].text for output in outputs] == list(text)
    assert all(len(output.outputs[0].token_ids) == 1 for output in outputs)
    assert [output.outputs[0].text for output in llm.stream("hello", end)] == [text]
    assert llm.generate("hello", new, use_tqdm=False)[0].outputs[0].text == text


def test_a_stream_never_shows_the_beginning_of_a_stop_string(llm: LLM, printable: dict[int, float], text: str) -> None:
    stop = text[3:6]
    shown = {output.outputs[0].text for output in llm.stream("hello", greedy(printable, stop=stop))}
    assert shown == {text[:count] for count in range(1, text.index(stop) + 1)}


def test_stopping_a_stream_frees_its_blocks(llm: LLM, printable: dict[int, float]) -> None:
    blocks = llm._engine.blocks
    free = blocks.free
    with pytest.raises(ValueError, match="the prompt is empty"):
        llm.stream("")
    stream = llm.stream("hello", greedy(printable))
    next(stream)
    assert blocks.free < free
    stream.close()
    assert blocks.free == free


def test_a_later_call_ends_an_open_stream(llm: LLM, printable: dict[int, float], text: str) -> None:
    free = llm._engine.blocks.free
    stream = llm.stream("hello", greedy(printable))
    next(stream)
    assert llm.generate("hello", greedy(printable), use_tqdm=False)[0].outputs[0].text == text
    with pytest.raises(RuntimeError, match="another call ended this stream"):
        next(stream)
    assert llm._engine.blocks.free == free


def test_a_finished_stream_stays_finished(llm: LLM, printable: dict[int, float]) -> None:
    stream = llm.stream("hello", greedy(printable))
    assert [next(stream).finished for _ in range(10)] == [False] * 9 + [True]
    other = llm.stream("hello", greedy(printable))
    next(other)
    assert list(stream) == []
    assert len(list(other)) == 9


def test_the_model_ends_its_turn_unless_told_to_go_on(llm: LLM, printable: dict[int, float]) -> None:
    always = {**printable, IM_END: 1000.0}
    ended = llm.generate("hello", greedy(always), use_tqdm=False)[0].outputs[0]
    assert (ended.text, ended.token_ids, ended.finish_reason, ended.stop_reason) == ("", [IM_END], "stop", None)
    ignored = llm.generate("hello", greedy(always, ignore_eos=True), use_tqdm=False)[0].outputs[0]
    assert (ignored.text, ignored.token_ids, ignored.finish_reason) == ("", [IM_END] * 10, "length")
    written = llm.generate("hello", greedy(always, ignore_eos=True, skip_special_tokens=False), use_tqdm=False)
    assert written[0].outputs[0].text == "<|im_end|>" * 10
    # A ban until min_tokens outweighs any bias.
    least = llm.generate("hello", greedy(always, min_tokens=4), use_tqdm=False)[0].outputs[0]
    assert len(least.token_ids) == 5 and least.token_ids.index(IM_END) == 4


def test_a_conversation_becomes_the_prompt_of_its_template(llm: LLM, printable: dict[int, float]) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rendered = "<|im_start|>user\nhi<|im_end|>\n"
    (output,) = llm.chat(messages, greedy(printable), use_tqdm=False)
    assert output.prompt == rendered + "<|im_start|>assistant\n"
    assert output.prompt_token_ids[0] == IM_START
    assert llm.tokenizer.decode(output.prompt_token_ids) == output.prompt
    both = llm.chat([messages, messages], greedy(printable), use_tqdm=False, add_generation_prompt=False)
    assert [answer.prompt for answer in both] == [rendered] * 2


def test_prompts_may_be_texts_tokens_or_both(llm: LLM, printable: dict[int, float], text: str) -> None:
    token_ids = llm.tokenizer.encode("hello")
    prompts = ["hello", {"prompt": "hello"}, {"prompt_token_ids": token_ids}]
    outputs = llm.generate(prompts, greedy(printable), use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == [text] * 3
    assert [output.prompt for output in outputs] == ["hello", "hello", None]
    assert all(output.prompt_token_ids == token_ids for output in outputs)
