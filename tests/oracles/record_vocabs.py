"""Records llama.cpp's ids for those of its vocabulary files that come without any.

Needs `llama-cpp-python==0.3.36` and the files of fetch_vocabs.py. Writes tests/data/tokenizer/more_vocabs.json.
"""

import argparse
import json
from pathlib import Path

import llama_cpp
from fetch_vocabs import DEFAULT_CACHE

DATA = Path(__file__).parents[1] / "data/tokenizer"
# Unigram, SentencePiece with scores for words that tie, and two without a pre-tokenizer's name.
NAMES = ("nomic-bert-moe", "baichuan", "gpt-neox", "aquila")
SPECIAL = [
    "<s> a <mask>  b</s>",
    "x <|endoftext|>\ny<|padding|>",
    "\u2460\uff21\ufb01\u00bd \u0130\u2003x\u200b",
    "  a \n b  ",
    "",
]


def ids(path: Path, texts: list[str]) -> list[list[int]]:
    """Tokenise with special tokens added and parsed."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]


def main() -> None:
    """Record the texts of the pre-tokenizer tests and a few with special tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the vocabularies (%(default)s)")
    cache = parser.parse_args().cache
    cases = json.loads((DATA / "pre_tokenizers.json").read_text("utf-8"))["cases"]
    texts = [case["text"] for case in cases] + SPECIAL
    recorded = {name: ids(cache / f"ggml-vocab-{name}.gguf", texts) for name in NAMES}
    lines = [
        json.dumps([text, *rows], separators=(",", ":")) for text, *rows in zip(texts, *recorded.values(), strict=True)
    ]
    head = json.dumps({"source": "llama.cpp as in llama-cpp-python 0.3.36", "names": NAMES})[:-1]
    (DATA / "more_vocabs.json").write_text(head + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n", "utf-8")


if __name__ == "__main__":
    main()
