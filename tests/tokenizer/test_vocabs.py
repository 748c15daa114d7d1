"""Tokenisation equals the ids recorded beside llama.cpp's own vocabulary files (make vocabs fetches them)."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.vocabs

FOLDER = Path(os.environ.get("REALM_TEST_VOCABS", "~/.cache/realm-jax/vocabs")).expanduser()
NAMES = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module", autouse=True)
def _fetched():
    if not FOLDER.is_dir():
        pytest.skip(f"no vocabularies in {FOLDER}: run `python tests/oracles/fetch_vocabs.py`")


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_those_recorded(name, tokenizer_of):
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    tokenizer = tokenizer_of(path)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(lines) in (len(texts), len(texts) - 1)  # a separator may end the file
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(token) for token in line.split()], text


def test_every_recorded_vocabulary_is_compared():
    recorded = {path.name.removeprefix("ggml-vocab-").removesuffix(".gguf.out") for path in FOLDER.glob("*.out")}
    assert recorded == set(NAMES)
