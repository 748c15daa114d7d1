"""Records how llama.cpp, and tiktoken where llama.cpp only approximates, cut the texts of the pre-tokenizer tests.

Needs `llama-cpp-python==0.3.36`, `gguf` and `tiktoken`. Rewrites the ids in tests/data/tokenizer/pre_tokenizers.json.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import gguf
import llama_cpp
import tiktoken

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "tokenizer"))
import pair_vocabulary  # noqa: E402

DATA = TESTS / "data/tokenizer/pre_tokenizers.json"
# OpenAI's published pattern for o200k, and Mistral's from its published tekken.json. llama.cpp's regular expressions
# know no upper and lower case beyond ASCII and take both kinds apart elsewhere.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
HEAD = r"[^\r\n\p{L}\p{N}]?"
TIKTOKEN = {
    "gpt-4o": f"{HEAD}{UPPER}*{LOWER}+{SUFFIX}|{HEAD}{UPPER}+{LOWER}*{SUFFIX}|\\p{{N}}{{1,3}}{REST}",
    "tekken": f"{HEAD}{UPPER}*{LOWER}+|{HEAD}{UPPER}+{LOWER}*|\\p{{N}}{REST}",
}
TIKTOKEN["llama4"] = TIKTOKEN["gpt-4o"]


def write_vocabulary(path: Path, pre: str) -> None:
    """Write the pair vocabulary as a GGUF file without tensors."""
    metadata = pair_vocabulary.metadata(pre)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_llama_cpp(pre: str, texts: list[str]) -> list[list[int]]:
    """Tokenise with llama.cpp, plain text, no special tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocabulary.gguf")
        write_vocabulary(path, pre)
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def by_tiktoken(pre: str, texts: list[str]) -> list[list[int]]:
    """Tokenise with tiktoken."""
    byte_of = {letter: byte for byte, letter in enumerate(pair_vocabulary.byte_letters())}
    ranks = {bytes(byte_of[c] for c in token): i for i, token in enumerate(pair_vocabulary.tokens())}
    encoding = tiktoken.Encoding(pre, pat_str=TIKTOKEN[pre], mergeable_ranks=ranks, special_tokens={})
    return [encoding.encode_ordinary(text) for text in texts]


def main() -> None:
    """Record every kind that the data file names."""
    data = json.loads(DATA.read_text("utf-8"))
    texts = [case["text"] for case in data["cases"]]
    results: list[dict[tuple[int, ...], list[str]]] = [defaultdict(list) for _ in texts]
    for pre in data["kinds"]:
        record = by_tiktoken if pre in TIKTOKEN else by_llama_cpp
        for result, ids in zip(results, record(pre, texts), strict=True):
            result[tuple(ids)].append(pre)
    data["cases"] = [
        {"text": text, "ids": {" ".join(kinds): list(ids) for ids, kinds in result.items()}}
        for text, result in zip(texts, results, strict=True)
    ]
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in data["cases"])
    head = json.dumps({key: value for key, value in data.items() if key != "cases"}, indent=1)[:-2]
    DATA.write_text(f'{head},\n "cases": [\n{lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
