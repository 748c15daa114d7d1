"""Every pre-tokenizer kind cuts text as recorded."""

import json
from pathlib import Path

import pair_vocabulary
import pytest

from realm_jax.tokenizer import Tokenizer, TokenizerError
from realm_jax.tokenizer.pretokenizers import PRE_TOKENIZERS

RECORDED = json.loads((Path(__file__).parents[1] / "data/tokenizer/pre_tokenizers.json").read_text("utf-8"))
# Kinds that begin with the begin token where the file does not say, as in llama.cpp.
BEGINNING = [
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
    "chameleon",
]


NAMES_BY_KIND = {
    kind: [name for name in PRE_TOKENIZERS if PRE_TOKENIZERS[name] == kind] for kind in PRE_TOKENIZERS.values()
}


@pytest.fixture(scope="module")
def vocabulary():
    return pair_vocabulary.metadata("")


@pytest.mark.parametrize("names", NAMES_BY_KIND.values(), ids=" ".join)
def test_words_are_cut_as_recorded(names, vocabulary):
    tokenizer = Tokenizer.from_gguf(vocabulary | {"tokenizer.ggml.pre": names[0]})
    for case in RECORDED["cases"]:
        own = tokenizer.encode(case["text"], add_special=False)
        recorded = {name: ids for kinds, ids in case["ids"].items() for name in kinds.split()}
        assert {name: own for name in names} == {name: recorded[name] for name in names}, case["text"]
        assert tokenizer.decode(own) == case["text"]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_begin_token_default(pre):
    assert PRE_TOKENIZERS[pre].add_bos == (pre in BEGINNING)


def test_unknown_kind_is_named_with_those_supported():
    with pytest.raises(TokenizerError, match=r"smollm.*got 'kimi-k2'"):
        Tokenizer.from_gguf(pair_vocabulary.metadata("kimi-k2"))
