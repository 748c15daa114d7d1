"""StopChecker against a search of the whole text after every token."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.sampling import FinishReason, SamplingParams, StopChecker

END_IDS = frozenset({100, 101})


class Outcome(NamedTuple):
    text: str
    tokens: int
    finish_reason: str | None
    stop_reason: str | int | None


def whole_text(params: SamplingParams, tokens: list[tuple[int, str]], limit: int | None) -> Outcome:
    """Decide after each token from the text so far, with nothing remembered."""
    text = ""
    for count, (token, delta) in enumerate(tokens, start=1):
        if count > params.min_tokens:
            ends = not params.ignore_eos and token in END_IDS
            if ends or token in (params.stop_token_ids or ()):
                shown = text + delta if params.include_stop_str_in_output else text
                return Outcome(shown, count, "stop", None if ends else token)
            for end in range(len(text) + 1, len(text + delta) + 1):
                for stop in params.stop_strings:
                    if (text + delta)[:end].endswith(stop):
                        shown = (text + delta)[: end if params.include_stop_str_in_output else end - len(stop)]
                        return Outcome(shown, count, "stop", stop)
        text += delta
        if limit is not None and count >= limit:
            return Outcome(text, count, "length", None)
    return Outcome(text, len(tokens), None, None)


def beginning_held(text: str, params: SamplingParams) -> int:
    """Return the length of the longest end of the text that is a beginning of a stop string, but not all of it."""
    if params.include_stop_str_in_output:
        return 0
    beginnings = {stop[:length] for stop in params.stop_strings for length in range(len(stop))}
    return max((length for length in range(len(text) + 1) if text[len(text) - length :] in beginnings), default=0)


texts = st.text(alphabet="ab\u00e9", max_size=3)
stops = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=4), max_size=2)
streams = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 1, 50, 100]), texts), min_size=1, max_size=12)


@settings(max_examples=400)
@given(
    tokens=streams,
    stop=stops,
    include=st.booleans(),
    ignore_eos=st.booleans(),
    min_tokens=st.integers(0, 4),
    max_tokens=st.one_of(st.none(), st.integers(4, 10)),
    room=st.one_of(st.none(), st.integers(1, 10)),
    stop_token_ids=st.sampled_from([None, [50], [50, 100]]),
)
def test_the_outcome_is_that_of_searching_the_whole_text(
    tokens, stop, include, ignore_eos, min_tokens, max_tokens, room, stop_token_ids
) -> None:
    params = SamplingParams(
        stop=stop,
        include_stop_str_in_output=include,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        stop_token_ids=stop_token_ids,
    )
    limit = min((n for n in (max_tokens, room) if n is not None), default=None)
    expected = whole_text(params, tokens, limit)
    checker, shown, plain = StopChecker(params, end_ids=END_IDS, max_tokens=room), "", ""
    for count, (token, delta) in enumerate(tokens, start=1):
        result = checker.push(token, delta)
        shown, plain = shown + result.text, plain + delta
        if result.finish_reason is not None:
            assert Outcome(shown, count, result.finish_reason, result.stop_reason) == expected
            return
        assert shown == plain[: len(plain) - beginning_held(plain, params)]
    assert expected.finish_reason is None


def emitted(params: SamplingParams, deltas: list[str]) -> list[str]:
    checker = StopChecker(params)
    return [checker.push(1, delta).text for delta in deltas]


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    params = SamplingParams(stop=["</s>"], max_tokens=None)
    assert emitted(params, ["a<", "b", "</", "x", "y</s", ">z"]) == ["a", "<b", "", "</x", "y", ""]
    including = SamplingParams(stop=["</s>"], max_tokens=None, include_stop_str_in_output=True)
    assert emitted(including, ["a<", "/s", ">z"]) == ["a<", "/s", ">"]


def test_the_string_that_is_complete_first_wins() -> None:
    assert StopChecker(SamplingParams(stop=["bcd", "abc"])).push(1, "xabcd") == ("x", FinishReason.STOP, "abc")
    assert StopChecker(SamplingParams(stop=["c", "abc"])).push(1, "xabcd") == ("xab", FinishReason.STOP, "c")


def test_reasons_are_those_of_vllm() -> None:
    params = SamplingParams(stop_token_ids=[5], max_tokens=2)
    assert StopChecker(params, end_ids=END_IDS).push(100, "<eos>") == ("", "stop", None)
    assert StopChecker(params, end_ids=END_IDS).push(5, "x") == ("", "stop", 5)
    checker = StopChecker(params, end_ids=END_IDS)
    assert checker.push(1, "x") == ("x", None, None)
    assert checker.push(2, "y") == ("y", "length", None)


def test_a_stop_token_shows_the_text_held_before_it() -> None:
    checker = StopChecker(SamplingParams(stop=["abc"]), end_ids=END_IDS)
    assert checker.push(1, "xab").text == "x"
    assert checker.push(100, "") == ("ab", "stop", None)


def test_an_end_at_the_last_token_is_a_stop() -> None:
    assert StopChecker(SamplingParams(max_tokens=1), end_ids=END_IDS).push(100, "").finish_reason == "stop"
    assert StopChecker(SamplingParams(max_tokens=1, stop="b")).push(1, "b").stop_reason == "b"


def test_nothing_follows_the_end() -> None:
    checker = StopChecker(SamplingParams(max_tokens=1))
    checker.push(1, "")
    with pytest.raises(RuntimeError, match="push must not follow the end of a request"):
        checker.push(1, "")


@pytest.mark.parametrize(("stop", "text", "reason"), [([], "abc", None), (["cd"], "abc", None), (["bc"], "a", "bc")])
def test_a_complete_grammar_ends_a_request_and_shows_what_was_held(stop, text, reason) -> None:
    """Before the limit on tokens and before min_tokens, but after a stop string that it completes."""
    checker = StopChecker(SamplingParams(stop=stop, max_tokens=2, min_tokens=0 if reason else 2))
    shown = checker.push(1, "ab").text
    result = checker.push(2, "c", complete=True)
    assert shown + result.text == text
    assert (result.finish_reason, result.stop_reason) == (FinishReason.STOP, reason)
    with pytest.raises(RuntimeError, match="push must not follow the end"):
        checker.push(3, "d")
