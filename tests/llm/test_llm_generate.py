"""Which tokens `generate` gives: batches, chunks, seeds, limits and log-probabilities."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from realm_jax import LLM, SamplingParams
from realm_jax.engine import Engine, EngineConfig, scoring
from realm_jax.engine.request import RequestFactory
from realm_jax.outputs import RequestOutput


def prompt_of(length: int, seed: int = 0) -> dict[str, list[int]]:
    return {"prompt_token_ids": np.random.default_rng(seed).integers(0, 128, length).tolist()}


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [sample.token_ids for output in outputs for sample in output.outputs]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_batch_gives_what_each_prompt_gives_alone(name: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(name)
    # Two of the three run at a time; the longest is past Gemma's window, and all outputs grow into new blocks.
    prompts = [prompt_of(5), prompt_of(30), prompt_of(12)]
    params = SamplingParams(temperature=0, max_tokens=8)
    together = llm.generate(prompts, params, use_tqdm=False)
    alone = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    assert tokens_of(together) == tokens_of(alone)
    assert [output.prompt_token_ids for output in together] == [prompt["prompt_token_ids"] for prompt in prompts]
    assert {output.outputs[0].finish_reason for output in together} == {"length"}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_chunks_give_the_logits_of_the_whole(name: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(name)
    token_ids = prompt_of(70)["prompt_token_ids"]
    whole = llm.logits(token_ids)
    assert whole.shape == (70, 128) and whole.dtype == np.float32
    # Another shape groups the float32 sums differently: some units in the last place of logits up to 6.
    np.testing.assert_allclose(scoring.sequence_logits(llm.runner, token_ids, chunk=7), whole, atol=5e-5)


def test_a_chunked_prefill_gives_the_tokens_of_a_whole_one(llama: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    whole = llama.generate(prompt_of(30), params, use_tqdm=False)
    engine = Engine(llama.runner, EngineConfig(max_num_seqs=2, max_num_batched_tokens=7))
    request = _factory().make(prompt_of(30), params)
    engine.add(request.sequences[0])
    while engine.has_work:
        engine.step()
    assert request.sequences[0].output_token_ids == whole[0].outputs[0].token_ids


def _factory(seed: int = 0) -> RequestFactory:
    return RequestFactory(None, vocab_size=128, max_model_len=112, seed=seed)


def test_a_seed_fixes_its_samples_whatever_else_is_in_the_batch(llama: LLM) -> None:
    seeded = SamplingParams(temperature=1.5, seed=7, n=3, max_tokens=8)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    samples = tokens_of(llama.generate(prompt_of(5), seeded, use_tqdm=False))
    assert len({tuple(sample) for sample in samples}) == 3
    mixed = llama.generate([prompt_of(12), prompt_of(5)], [greedy, seeded], use_tqdm=False)
    assert tokens_of(mixed[1:]) == samples
    assert [sample.index for sample in mixed[1].outputs] == [0, 1, 2]
    second = SamplingParams(temperature=1.5, seed=8, max_tokens=8)
    assert tokens_of(llama.generate(prompt_of(5), second, use_tqdm=False)) == samples[1:2]


def test_requests_without_a_seed_differ_and_repeat_with_the_model_s() -> None:
    def seeds(model_seed: int) -> list[int]:
        factory = _factory(model_seed)
        requests = [factory.make(prompt_of(5), SamplingParams(n=2)) for _ in range(2)]
        return [sequence.sampling.seed for request in requests for sequence in request.sequences]

    assert len(set(seeds(0) + seeds(1))) == 8
    assert seeds(0) == seeds(0)


def test_logprobs_are_those_of_the_logits(llm: LLM, printable: dict[int, float]) -> None:
    # The bias bans the most probable tokens, and what is reported does not know of it.
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, logit_bias=printable)
    output = llm.generate("hello", params, use_tqdm=False)[0]
    sample, prompt = output.outputs[0], output.prompt_token_ids
    expected = log_softmax(llm.logits(prompt + sample.token_ids).astype(np.float64), axis=-1)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert sample.logprobs is not None
    tables = output.prompt_logprobs[1:] + sample.logprobs
    for i, (token, table) in enumerate(zip(prompt[1:] + sample.token_ids, tables, strict=True)):
        assert table is not None
        count = 2 if i < len(prompt) - 1 else 3
        best = np.argsort(-expected[i], kind="stable")
        assert list(table) == list(dict.fromkeys([token, *best[:count].tolist()]))
        for other, entry in table.items():
            # The step and the whole sequence round float32 sums of logits up to 30 differently.
            assert entry.logprob == pytest.approx(expected[i, other], abs=1e-4)
            assert entry.rank == 1 + int((expected[i] > expected[i, other]).sum())
            assert entry.decoded_token == llm.tokenizer.decode([other])
    assert sample.cumulative_logprob == pytest.approx(
        sum(t[k].logprob for t, k in zip(sample.logprobs, sample.token_ids, strict=True))
    )


def test_a_prompt_of_one_token_has_no_logprobs_of_its_own(llama: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    assert llama.generate(prompt_of(1), params, use_tqdm=False)[0].prompt_logprobs == [None]


def test_generation_ends_with_the_context(llama: LLM) -> None:
    output = llama.generate(prompt_of(108), SamplingParams(temperature=0, max_tokens=None), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == llama.max_model_len - 108
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("length", None)
    assert output.finished and output.metrics.finished_time >= output.metrics.first_token_time


def test_a_stop_token_ends_generation_after_min_tokens(llama: LLM) -> None:
    free = llama.generate(prompt_of(5), SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0].outputs[0]
    stop = free.token_ids[2]
    at_once = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[stop])
    first = llama.generate(prompt_of(5), at_once, use_tqdm=False)[0].outputs[0]
    assert first.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (first.finish_reason, first.stop_reason) == ("stop", stop)
    later = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[stop], min_tokens=5)
    sample = llama.generate(prompt_of(5), later, use_tqdm=False)[0].outputs[0]
    assert len(sample.token_ids) >= 5 and stop not in sample.token_ids[:5]


def test_nothing_in_gives_nothing_out(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


def test_a_steady_state_compiles_nothing(llama: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    llama.generate([prompt_of(5), prompt_of(12)], params, use_tqdm=False)
    compiled = llama.runner.compilations
    llama.generate([prompt_of(9, seed=1), prompt_of(8, seed=2)], params, use_tqdm=False)
    assert llama.runner.compilations == compiled


def test_the_context_is_printed_unless_asked_for(llama: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = LLM(llama.path, max_model_len=64, max_num_seqs=1)
    assert capsys.readouterr() == ("", "")
    whole = LLM(llama.path, max_num_seqs=1, kv_cache_memory=2**20)
    assert capsys.readouterr().err == "realm: max_model_len is 256 of 256 trained\n"
    assert (chosen.max_model_len, whole.max_model_len) == (64, 256)
    assert Path(llama.path).name in repr(chosen)
