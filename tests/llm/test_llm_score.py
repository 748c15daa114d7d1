"""Scores, perplexities and embeddings against transformers' recorded logits, and whatever else they must equal."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

import cpu_kernels
from realm_jax import LLM, SamplingParams
from realm_jax.engine.likelihood import Pair
from realm_jax.outputs import ScoreOutput

# Transformers computed the recordings in float64; float32 and its order of sums differ in the fifth digit.
RECORDED = 1e-4
# Programs of other shapes sum in another order.
ROUNDING = 2e-5


def recorded(name: str, prompt: str) -> tuple[list[int], np.ndarray]:
    """A prompt and the log-probability of each of its tokens but the first, by the recorded logits."""
    arrays = np.load(TINY / f"{name}.npz")
    ids, logits = arrays[f"{prompt}.ids"], arrays[f"{prompt}.logits"].astype(np.float64)
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return ids.tolist(), table[np.arange(len(ids) - 1), ids[1:]]


def tokens(ids: list[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": ids}


def assert_same(one: ScoreOutput, other: ScoreOutput) -> None:
    assert one.token_ids == other.token_ids and one.is_greedy == other.is_greedy and one.ranks == other.ranks
    np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=ROUNDING)


@pytest.mark.parametrize("split", [1, 40, 71])
def test_scores_equal_the_recorded_logits(llama: LLM, split: int) -> None:
    ids, expected = recorded("llama", "long")
    (score,) = llama.score(tokens(ids[:split]), [ids[split:]])
    np.testing.assert_allclose(score.token_logprobs, expected[split - 1 :], atol=RECORDED)
    assert score.logprob == pytest.approx(expected[split - 1 :].sum(), abs=RECORDED * len(ids))
    assert score.token_ids == ids[split:] and score.num_prompt_tokens == split


def test_a_window_slides_over_what_is_scored(gemma3: LLM) -> None:
    ids, expected = recorded("gemma3", "long")
    (score,) = gemma3.score(tokens(ids[:30]), ids[30:])
    np.testing.assert_allclose(score.token_logprobs, expected[29:], atol=RECORDED)


def test_ranks_and_greedy_are_those_of_the_logits(llama: LLM) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    best = llama.generate(tokens(prompt), params)[0].outputs[0].token_ids
    worse = [*best[:4], (best[4] + 1) % 128]
    scores = llama.score(tokens(prompt), [best, worse])
    assert [score.is_greedy for score in scores] == [True, False]
    assert scores[0].ranks == [1] * 5 and scores[1].ranks[:4] == [1] * 4 and scores[1].ranks[4] > 1
    logits = llama.logits(prompt + worse)[-2]
    assert scores[1].ranks[4] == 1 + int((logits > logits[worse[4]]).sum())


def pairs(rng: np.random.Generator) -> list[Pair]:
    """Contexts that several continuations share, and that begin alike, in random order; more than run at once."""
    beginning = rng.integers(128, size=40).tolist()
    made = []
    for _ in range(12):
        context = beginning + rng.integers(128, size=rng.integers(1, 20)).tolist()
        for _ in range(rng.integers(1, 9)):
            made.append(Pair(context=context, continuation=rng.integers(128, size=rng.integers(1, 12)).tolist()))
    made += [Pair(context=[7], continuation=[i]) for i in range(40)]
    return [made[i] for i in rng.permutation(len(made))]


def test_any_number_of_pairs_is_scored_as_each_alone(llama: LLM) -> None:
    wanted = pairs(np.random.default_rng(5))
    before = llama._engine.stats.computed_tokens
    together = llama.score_tokens(wanted, use_tqdm=False)
    computed = llama._engine.stats.computed_tokens - before
    assert llama._engine.blocks.idle
    # Every context once, or less where they begin alike; of a pair its own tokens, and of what is shared a block again.
    contexts = {tuple(pair.context) for pair in wanted}
    assert computed <= sum(map(len, contexts)) + sum(len(pair.continuation) + 1 for pair in wanted)
    assert computed < 0.5 * sum(len(pair.context) + len(pair.continuation) for pair in wanted)
    for i in (*range(0, len(wanted), 9), len(wanted) - 1):
        assert_same(llama.score_tokens([wanted[i]])[0], together[i])


def test_more_continuations_of_a_prompt_than_may_wait(llama: LLM) -> None:
    context = list(range(50))
    scores = llama.score(tokens(context), [[i] for i in range(128)], use_tqdm=False)
    assert sum(math.exp(score.logprob) for score in scores) == pytest.approx(1.0, abs=RECORDED)
    assert sum(score.is_greedy for score in scores) == 1
    assert sorted(score.ranks[0] for score in scores) == list(range(1, 129))


def test_texts_are_split_where_the_prompt_ends(llm: LLM) -> None:
    scores = llm.score(["hi there", "hi there ", "a h", "h"], [" hi", "hi", "i h", "i there"])
    assert [score.token_ids for score in scores[:3]] == [[32, 247], [32, 247], list(b" h")]
    assert_same(scores[0], scores[1])
    # "hi" is one token: the prompt keeps its own, and the continuation what follows as many of both together.
    assert scores[2].num_prompt_tokens == 3 and scores[3].token_ids == list(b" there")


def test_a_prompt_of_nothing_is_the_begin_or_end_token(llm: LLM, llama: LLM) -> None:
    (score,) = llm.score("", ["abc"])
    (given,) = llm.score(tokens([0xF6]), ["abc"])
    assert_same(score, given)
    (spaces,) = llm.score("  ", ["abc"])
    assert spaces.token_ids == list(b"  abc")
    with pytest.raises(ValueError, match="the file names none"):
        llama.score(tokens([]), [[1]])


def test_what_is_too_long_is_refused_or_cut_at_its_left(llama: LLM) -> None:
    ids = np.random.default_rng(2).integers(128, size=150).tolist()
    with pytest.raises(
        ValueError, match="a prompt of 140 tokens and a continuation of 10 do not fit max_model_len = 112"
    ):
        llama.score(tokens(ids[:140]), [ids[140:]])
    (score,) = llama.score(tokens(ids[:140]), [ids[140:]], truncate=True)
    # As in lm-evaluation-harness: the last max_model_len + 1 tokens, of which the very last needs no position.
    (kept,) = llama.score(tokens(ids[37:140]), [ids[140:]])
    assert_same(score, kept)
    assert (score.num_prompt_tokens, score.num_dropped_tokens) == (103, 37) and kept.num_dropped_tokens == 0
    with pytest.raises(ValueError, match="at most max_model_len = 112 tokens, got 113"):
        llama.score(tokens([1]), [ids[:113]], truncate=True)


def test_pairs_that_make_no_sense_are_refused(llm: LLM, llama: LLM) -> None:
    with pytest.raises(ValueError, match="at least one token to its prompt, got ''"):
        llm.score("hi", [""])
    with pytest.raises(ValueError, match="must add at least one token to its prompt, got 'i'"):
        llm.score("h", ["i"])  # one token together
    with pytest.raises(ValueError, match=r"a continuation for each of 2 prompts, got 1"):
        llm.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"must lie in \[0, 128\), got 128"):
        llama.score(tokens([1]), [[128]])
    with pytest.raises(ValueError, match="no tokenizer"):
        llama.score("a", ["b"])


def test_scoring_ends_an_open_stream_and_leaves_generation_as_it_was(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    expected = llm.generate("hi there", params)[0].outputs[0].token_ids
    stream = llm.stream("hi there", params)
    next(stream)
    llm.score("hi there", [" friend", " foe"])
    with pytest.raises(RuntimeError, match="another call ended this stream"):
        list(stream)
    assert llm.generate("hi there", params)[0].outputs[0].token_ids == expected


def sliding(ids: list[int], logits_of: Any, max_length: int, stride: int) -> list[float]:
    """The loop of transformers' documentation: windows, of which the labels that came before are left out."""
    found, before = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        target, window = end - before, ids[begin:end]
        logits = logits_of(window).astype(np.float64)
        table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        logprobs = table[np.arange(len(window) - 1), window[1:]]
        found.extend(logprobs[-min(target, len(logprobs)) :].tolist())
        before = end
        if end == len(ids):
            return found
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(20, 20), (20, 7), (72, 30), (100, 100), (2, 1)])
def test_perplexity_is_that_of_sliding_windows(llama: LLM, max_length: int, stride: int) -> None:
    ids, expected = recorded("llama", "long")
    found = llama.perplexity(ids, max_length=max_length, stride=stride)
    if max_length < len(ids):
        expected = np.asarray(sliding(ids, llama.logits, max_length, stride))
    np.testing.assert_allclose(found.token_logprobs, expected, atol=RECORDED)
    assert found.num_tokens == len(expected) and found.logprob == pytest.approx(expected.sum(), abs=1e-2)
    assert found.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-3)


def test_perplexity_of_a_text_longer_than_the_context(llm: LLM) -> None:
    text = "hi there, this is a text. " * 30
    found = llm.perplexity(text)
    ids = llm.pair_encoder.text(text)
    np.testing.assert_allclose(found.token_logprobs, sliding(ids, llm.logits, 112, 56), atol=RECORDED)
    assert found.num_tokens == len(ids) - 1


def test_windows_that_make_no_sense_are_refused(llama: LLM) -> None:
    with pytest.raises(ValueError, match=r"stride must lie in \[1, max_length\]"):
        llama.perplexity([1, 2, 3], max_length=10, stride=11)
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        llama.perplexity([1])
    with pytest.raises(ValueError, match="max_length must be at most max_model_len = 112, got 200"):
        llama.perplexity(list(range(128)) * 2, max_length=200, stride=100)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embeddings_pool_the_last_norm(llama: LLM, pooling: str) -> None:
    rng = np.random.default_rng(1)
    prompts = [tokens(rng.integers(128, size=length).tolist()) for length in (20, 1, 33, 7, 110)]
    found = llama.embed(prompts, pooling=pooling, normalize=False)
    assert found.shape == (5, llama.config.hidden_size) and found.dtype == np.float32
    for vector, prompt in zip(found, prompts, strict=True):
        rows = llama.capture(prompt, "final_norm")["final_norm"][0]
        expected = {"mean": rows.mean(0), "last": rows[-1], "cls": rows[0]}[pooling]
        np.testing.assert_allclose(vector, expected, atol=RECORDED)
    unit = llama.embed(prompts, pooling=pooling)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(unit, found / np.linalg.norm(found, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_prompt_of_several_chunks_is_embedded_whole(pooling: str) -> None:
    llm = LLM(TINY / "llama.gguf", max_model_len=640, max_num_seqs=1, implementation="xla", quiet=True)
    prompt = tokens(np.random.default_rng(0).integers(128, size=600).tolist())
    rows = llm.capture(prompt, "final_norm")["final_norm"][0]
    expected = {"mean": rows.mean(0), "last": rows[-1], "cls": rows[0]}[pooling]
    np.testing.assert_allclose(llm.embed(prompt, pooling=pooling, normalize=False)[0], expected, atol=RECORDED)


def test_an_unknown_pooling_is_refused(llama: LLM) -> None:
    with pytest.raises(ValueError, match="pooling must be one of mean, last, cls, got 'max'"):
        llama.embed(tokens([1]), pooling="max")


def test_a_cache_of_one_sequence_takes_all_that_the_context_allows() -> None:
    llm = LLM(TINY / "llama.gguf", max_model_len=112, max_num_seqs=1, block_size=16, implementation="xla", quiet=True)
    assert llm.runner.num_blocks == (1 + 112 // 16,)
    ids = np.random.default_rng(2).integers(128, size=113).tolist()
    (score,) = llm.score(tokens(ids[:100]), ids[100:])
    assert len(score.token_logprobs) == 13


def test_scores_have_equal_bits_however_they_are_computed(smollm2_path: Path) -> None:
    if not cpu_kernels.is_available():
        pytest.skip(f"sums of XLA depend on shapes; {cpu_kernels.why_unavailable()}")
    settings = {"max_model_len": 256, "block_size": 16, "implementation": "cpu", "quiet": True}
    llm = LLM(smollm2_path, max_num_seqs=8, max_num_batched_tokens=64, **settings)
    plain = LLM(smollm2_path, max_num_seqs=1, enable_prefix_caching=False, **settings)
    examples = "".join(f"Question: What is {i} and {i}?\nAnswer: {2 * i}\n\n" for i in range(5))
    asked = [f"{examples}Question: What is {i} and {i + 1}?\nAnswer:" for i in range(3, 9)]
    prompts = [prompt for prompt in asked for _ in range(4)]
    answers = [f" {2 * i + 1 + k}" for i in range(3, 9) for k in range(4)]
    together = llm.score(prompts, answers, use_tqdm=False)
    assert llm.score(prompts, answers, use_tqdm=False) == together  # with all prompts in the cache of prefixes
    assert [plain.score(p, a)[0] for p, a in zip(prompts[::3], answers[::3], strict=True)] == together[::3]
    backwards = llm.score(prompts[::-1], answers[::-1], use_tqdm=False)
    assert backwards[::-1] == together
