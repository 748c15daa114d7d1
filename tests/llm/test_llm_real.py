"""SmolLM2-135M-Instruct answers a question and ends its turn."""

from pathlib import Path

from realm_jax import LLM, SamplingParams


def test_a_question_is_answered(smollm2_path: Path) -> None:
    # In the exact path: the two best first words differ by 0.08, less than what activations in 8 bits change.
    llm = LLM(smollm2_path, max_model_len=256, max_num_seqs=1, implementation="xla", quiet=True)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (output,) = llm.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    answer = output.outputs[0]
    assert "Paris" in answer.text and "<|" not in answer.text
    assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", llm.tokenizer.eos_id)
    assert llm.tokenizer.decode(answer.token_ids, skip_special=True) == answer.text
    *_, last = llm.stream({"prompt_token_ids": output.prompt_token_ids}, SamplingParams(temperature=0, max_tokens=32))
    assert last.outputs[0].text == answer.text
