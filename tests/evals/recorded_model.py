"""Owns a recorded tiny model that reads ASCII, so that transformers' logits are known of texts."""

from pathlib import Path

import gguf
import numpy as np
import tiny_chat

from realm_jax import gguf as files

_MERGED = 2  # in no recorded prompt; BPE cannot be written without a merge
TINY = Path(__file__).parents[1] / "data" / "tiny"


def write(path: Path, name: str = "llama") -> Path:
    """Write a recorded model with a vocabulary in which each ASCII character but one is the token of its number."""
    source = files.open(TINY / f"{name}.gguf")
    writer = gguf.GGUFWriter(path, source.architecture)
    for key, value in source.metadata.items():
        if key != "general.architecture" and not key.startswith("tokenizer."):
            _add(writer, key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    characters = tiny_chat.byte_characters()[:128]
    characters[_MERGED] = "~~"
    writer.add_token_list(characters)
    writer.add_token_types([gguf.TokenType.NORMAL] * 128)
    writer.add_token_merges(["~ ~"])
    writer.add_eos_token_id(_MERGED)
    writer.add_add_bos_token(False)
    for tensor, raw in source.tensors.items():
        writer.add_tensor(tensor, np.ascontiguousarray(raw.data.view(np.float32).reshape(raw.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def recording(prompt: str, name: str = "llama") -> tuple[list[int], np.ndarray]:
    """The tokens of a prompt, and `float64[T - 1]`: the log-probability of each but the first, by transformers."""
    arrays = np.load(TINY / f"{name}.npz")
    ids, logits = arrays[f"{prompt}.ids"], arrays[f"{prompt}.logits"].astype(np.float64)
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return ids.tolist(), table[np.arange(len(ids) - 1), ids[1:]]


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, np.asarray(value).tolist())
