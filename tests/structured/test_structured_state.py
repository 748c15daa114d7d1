"""A state accepts only what its masks allow, goes back as it came, and many fill as one does."""

import threading

import numpy as np
import pytest
from grammar_steps import accept_text, allowed, ids_of
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_jax.structured import StructuredOutputs

OBJECT = StructuredOutputs(
    json={
        "type": "object",
        "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["name", "n"],
    }
)
STEPS = st.lists(st.integers(0, 2**16), max_size=25)


def walk(state, compiler, picks) -> list[int]:
    """Accept an allowed token for each number, until the grammar is finished."""
    tokens = []
    for pick in picks:
        if state.finished:
            break
        options = allowed(state, compiler)
        tokens.append(options[pick % len(options)])
        assert state.accept(tokens[-1])
    return tokens


@settings(max_examples=40)
@given(picks=STEPS, outputs=st.sampled_from([OBJECT, StructuredOutputs(regex="a{2,4}(bc)*")]))
def test_exactly_the_allowed_tokens_are_accepted(small, picks, outputs) -> None:
    _, compiler = small
    state = compiler.start(outputs)
    walk(state, compiler, picks)
    if state.finished:
        assert not any(state.accept(token) for token in range(compiler.vocab_size) if token not in compiler.end_ids)
        return
    forced = bool(state.forced_tokens())
    options = set(allowed(state, compiler))
    accepted = {token for token in range(-1, compiler.vocab_size + 1) if state.copy().accept(token)}
    # Where text is forced, masks allow only the way the tokenizer writes it.
    assert options <= accepted if forced else options == accepted


@settings(max_examples=40)
@given(picks=STEPS, data=st.data())
def test_rolling_back_is_never_having_been_there(small, picks, data) -> None:
    _, compiler = small
    outputs = data.draw(st.sampled_from([OBJECT, StructuredOutputs(regex="a{2,4}(bc)*")]))
    state, fresh = compiler.start(outputs), compiler.start(outputs)
    tokens = walk(state, compiler, picks)
    count = data.draw(st.integers(0, len(tokens)))
    state.rollback(count)
    for token in tokens[: len(tokens) - count]:
        assert fresh.accept(token)
    assert (state.finished, state.complete) == (fresh.finished, fresh.complete)
    assert allowed(state, compiler) == allowed(fresh, compiler)
    assert state.forced_tokens() == fresh.forced_tokens()


def test_going_back_too_far_is_refused(small) -> None:
    tokenizer, compiler = small
    state = compiler.start(StructuredOutputs(regex="abc"))
    accept_text(state, tokenizer, "ab")
    for count in (-1, 3):
        with pytest.raises(ValueError, match=f"count must lie in 0 to the 2 tokens accepted, got {count}"):
            state.rollback(count)
    accept_text(state, tokenizer, "c")
    assert state.finished


def test_the_end_comes_where_the_grammar_may_end(small) -> None:
    tokenizer, compiler = small
    end = min(tokenizer.end_ids)
    state = compiler.start(StructuredOutputs(regex="a{2,3}"))
    assert not state.accept(end)
    accept_text(state, tokenizer, "aa")
    assert (state.finished, state.complete) == (False, True)
    assert set(allowed(state, compiler)) == {*tokenizer.encode_continuation("a"), *tokenizer.end_ids}
    ended = state.copy()
    assert ended.accept(end)
    assert ended.finished
    assert allowed(ended, compiler) == sorted(tokenizer.end_ids)
    assert not ended.accept(end)
    accept_text(state, tokenizer, "a")
    assert state.finished
    assert allowed(state, compiler) == sorted(tokenizer.end_ids)
    assert state.forced_tokens() == []


def test_a_refused_token_changes_nothing(small) -> None:
    tokenizer, compiler = small
    state = compiler.start(OBJECT)
    before = allowed(state, compiler)
    for token in (-1, compiler.vocab_size, compiler.vocab_size - 1, *tokenizer.encode_continuation("]")):
        assert not state.accept(token)
    assert allowed(state, compiler) == before
    assert state.error is None


def test_copies_go_their_own_ways(small) -> None:
    tokenizer, compiler = small
    state = compiler.start(StructuredOutputs(choice=["ab", "cd"]))
    other = state.copy()
    accept_text(state, tokenizer, "ab")
    accept_text(other, tokenizer, "cd")
    assert state.finished and other.finished
    assert not compiler.start(StructuredOutputs(choice=["ab", "cd"])).finished


def test_filling_many_is_filling_each(model) -> None:
    tokenizer, compiler = model
    states = [compiler.start(OBJECT), None, compiler.start(StructuredOutputs(regex="[0-9]+")), compiler.start(OBJECT)]
    accept_text(states[3], tokenizer, "{")
    ended = compiler.start(StructuredOutputs(choice=["7"]))
    accept_text(ended, tokenizer, "7")
    mask = np.zeros_like(compiler.new_mask(7))
    compiler.fill([*states, ended], mask)
    for row, state in enumerate([*states, ended]):
        alone = compiler.new_mask(1)
        if state is not None:
            state.fill(alone[0])
        np.testing.assert_array_equal(mask[row], alone[0])
    assert ids_of(mask[4], compiler.vocab_size) == sorted(tokenizer.end_ids)
    assert (mask[5:] == -1).all()


@pytest.mark.parametrize("shape", [(9,), (8,), (2, 9)])
def test_rows_of_another_shape_are_refused(small, shape) -> None:
    _, compiler = small
    state = compiler.start(OBJECT)
    wrong = np.zeros(shape, np.int64 if shape == (9,) else np.int32)
    with pytest.raises(ValueError, match=r"mask_row must be int32\[9\], got"):
        state.fill(wrong)
    with pytest.raises(ValueError, match="mask_row must be contiguous and writeable"):
        state.fill(np.zeros((9, 2), np.int32)[:, 0])


def test_masks_of_another_shape_are_refused(small) -> None:
    _, compiler = small
    with pytest.raises(ValueError, match=r"mask must be int32\[rows, 9\] in C order, got int32\[1, 8\]"):
        compiler.fill([None], np.zeros((1, 8), np.int32))
    with pytest.raises(ValueError, match="mask must have a row for each of 2 states, got 1"):
        compiler.fill([None, None], compiler.new_mask(1))


def test_a_grammar_that_the_model_cannot_follow_is_refused(small) -> None:
    _, compiler = small
    with pytest.raises(ValueError, match="must be a constraint that this model's tokens can.*<.nothing.>") as caught:
        compiler.start(StructuredOutputs(grammar='start: <|nothing|> "a"'))
    assert "\n" not in str(caught.value)


def test_a_grammar_that_fails_ends_its_sequence_and_says_why(compilers) -> None:
    """A text that SmolLM2 has no bytes for: nothing can come."""
    tokenizer, compiler = compilers("smollm2")
    missing = next(c for c in map(chr, range(1, 32)) if not tokenizer.encode_continuation(c))
    state = compiler.start(StructuredOutputs(choice=["a" + missing]))
    accept_text(state, tokenizer, "a")
    assert set(allowed(state, compiler)) <= tokenizer.end_ids
    assert state.finished
    assert not state.complete
    assert state.error


def test_a_grammar_too_complex_for_the_library_fails_alone(small) -> None:
    tokenizer, compiler = small
    state = compiler.start(StructuredOutputs(regex="((a{1,100}){1,100}){1,100}"))
    while not state.finished:
        accept_text(state, tokenizer, "a")
        allowed(state, compiler)
    assert state.error == "lexer error: too many expressions constructed"
    assert not any(state.accept(token) for token in range(compiler.vocab_size))
    assert state.forced_tokens() == []
    assert set(allowed(state, compiler)) == tokenizer.end_ids
    assert compiler.start(StructuredOutputs(regex="((a{1,100}){1,100}){1,100}")).error is None


def test_grammars_start_from_several_threads(small) -> None:
    tokenizer, compiler = small
    failures = []

    def work(number: int) -> None:
        try:
            for i in range(40):
                outputs = StructuredOutputs(choice=[f"x{(number + i) % 90}"])
                accept_text(compiler.start(outputs), tokenizer, f"x{(number + i) % 90}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
