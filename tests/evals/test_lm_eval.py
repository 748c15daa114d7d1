"""lm-evaluation-harness runs GGUF files on tasks of this folder: its numbers are transformers', its options obeyed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recorded_model
import tiny_chat

from realm_jax import LLM, SamplingParams

pytestmark = pytest.mark.evals

# Transformers in float32 must agree this well; the recordings were computed in float64.
RECORDED = 1e-3

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
"""
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["{until}"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def write_task(folder: Path, name: str, form: str, documents: list[dict[str, Any]], **fields: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / f"{name}.yaml").write_text(form.format(name=name, data=json.dumps(str(data)), **fields))


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process: the CPU, caches of its own, no network."""
    own = {"JAX_PLATFORMS": "cpu", "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**os.environ, **own, "REALM_CACHE_DIR": str(folder / "cache")}


def harness(folder: Path, model: Path, *words: str, arguments: str = "") -> dict[str, list[dict[str, Any]]]:
    """Run the harness's command line in a process of its own, and return the samples of each task."""
    out = folder / "out"
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "realm"]
    command += ["--model_args", f"pretrained={model},implementation=xla{arguments}", "--include_path", str(folder)]
    command += ["--output_path", str(out), "--log_samples", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder), check=False)
    assert done.returncode == 0, done.stderr
    samples: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.rglob("samples_*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[file.name.removeprefix("samples_").rpartition("_")[0]] = sorted(rows, key=lambda row: row["doc_id"])
    (results,) = out.rglob("results_*.json")
    samples["results"] = [json.loads(results.read_text())]
    return samples


def test_log_likelihoods_equal_transformers(tmp_path: Path) -> None:
    model = recorded_model.write(tmp_path / "recorded.gguf")
    documents, expected = [], []
    for prompt in ("short", "long"):
        ids, logprobs = recorded_model.recording(prompt)
        text = bytes(ids).decode()
        for split in range(3, len(ids), 5):
            bare = len(text[:split].rstrip())  # the harness counts spaces at a context's end to the continuation
            documents.append({"context": text[:split], "choices": [text[split:], "~"], "answer": 0})
            expected.append(logprobs[bare - 1 :].sum())
    write_task(tmp_path, "recorded_choice", CHOICE, documents)
    ids, logprobs = recorded_model.recording("long")
    write_task(tmp_path, "recorded_rolling", ROLLING, [{"text": bytes(ids[1:]).decode()}])
    found = harness(
        tmp_path, model, "--tasks", "recorded_choice,recorded_rolling", arguments=f",prefix_token_id={ids[0]}"
    )
    scores = [row["filtered_resps"][0] for row in found["recorded_choice"]]
    assert [float(logprob) for logprob, _ in scores] == pytest.approx(expected, abs=RECORDED)
    (rolling,) = found["recorded_rolling"]
    assert float(rolling["filtered_resps"][0]) == pytest.approx(logprobs.sum(), abs=RECORDED)
    configuration = found["results"][0]["config"]
    assert configuration["model_architecture"] == "llama" and configuration["implementation"] == "xla"


def test_a_context_longer_than_the_model_loses_its_left_as_in_the_harness(tmp_path: Path) -> None:
    model = recorded_model.write(tmp_path / "recorded.gguf")
    ids, _ = recorded_model.recording("long")
    text = bytes(ids).decode()
    write_task(tmp_path, "long_choice", CHOICE, [{"context": text[:60], "choices": [text[60:], "~"], "answer": 0}])
    write_task(tmp_path, "long_rolling", ROLLING, [{"text": text}])
    arguments = f",max_length=32,prefix_token_id={ids[5]}"
    found = harness(tmp_path, model, "--tasks", "long_choice,long_rolling", arguments=arguments)
    llm = LLM(model, implementation="xla", quiet=True)
    (score,) = llm.score({"prompt_token_ids": ids[-33:60]}, [ids[60:]])
    assert float(found["long_choice"][0]["filtered_resps"][0][0]) == pytest.approx(score.logprob, abs=RECORDED)
    # 72 tokens in windows of 32 positions: the first predicts 32 after the prefix, the last keeps a whole window.
    windows = [([ids[5]], ids[:32]), (ids[31:32], ids[32:64]), (ids[39:64], ids[64:])]
    total = sum(llm.score({"prompt_token_ids": context}, [rest])[0].logprob for context, rest in windows)
    assert float(found["long_rolling"][0]["filtered_resps"][0]) == pytest.approx(total, abs=RECORDED)


def test_generation_obeys_stop_strings_and_the_chat_template(tmp_path: Path) -> None:
    model = tiny_chat.write(tmp_path / "tiny.gguf")
    llm = LLM(model, implementation="xla", quiet=True)
    template = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    questions = ["hi", "what?", "x"]
    params = SamplingParams(temperature=0.0, max_tokens=12, skip_special_tokens=False)
    texts = [llm.generate(template.format(question), params)[0].outputs[0].text for question in questions]
    until = next(character for character in texts[0][3:] if character.isprintable() and character not in '"\\{}')
    documents = [{"question": q, "answer": t.split(until)[0]} for q, t in zip(questions, texts, strict=True)]
    write_task(tmp_path, "chat_generate", GENERATE, documents, until=until)
    words = ["--tasks", "chat_generate", "--apply_chat_template", "--system_instruction", "be brief"]
    found = harness(tmp_path, model, *words)
    rows = found["chat_generate"]
    assert [row["arguments"]["gen_args_0"]["arg_0"] for row in rows] == [template.format(q) for q in questions]
    assert [row["resps"][0][0] for row in rows] == [document["answer"] for document in documents]
    assert found["results"][0]["chat_template"] == llm.tokenizer.chat_template.sources["default"]


def test_realm_eval_runs_the_harness_with_its_options(tmp_path: Path) -> None:
    model = tiny_chat.write(tmp_path / "tiny,with=signs.gguf")
    write_task(tmp_path, "choice", CHOICE, [{"context": "a", "choices": ["b", "c"], "answer": i} for i in (0, 1, 0)])
    out = tmp_path / "out"
    command = [str(Path(sys.executable).with_name("realm")), "eval", "--model", str(model), "--tasks", "choice"]
    command += ["--implementation", "xla", "--include_path", str(tmp_path), "--limit", "2", "--output_path", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    assert "|choice|" in done.stdout
    (results,) = out.rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["results"]["choice"]["acc,none"] == 0.5 and found["n-samples"]["choice"]["effective"] == 2
    assert found["config"]["model_file"] == str(model)


def test_the_harness_keeps_its_own_models_and_knows_one_more() -> None:
    code = "import lm_eval.api.registry as r; print(r.get_model('realm').__name__, r.get_model('dummy').__name__)"
    for first in ("", "import realm_jax.evals.harness; "):
        done = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["RealmLM", "DummyLM"], done.stderr


def test_a_process_without_the_harness_imports_nothing_of_ours() -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith(('realm_jax', 'lm_eval', 'jax'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""
