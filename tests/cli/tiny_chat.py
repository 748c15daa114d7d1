"""Owns a model of 260 kB that can be run and chatted with: the tiny llama of tests/data and a byte vocabulary."""

from pathlib import Path

import gguf
import numpy as np

TINY_LLAMA = Path(__file__).parents[1] / "data" / "tiny" / "llama.gguf"
CONTEXT = 256

# Bytes that no UTF-8 text holds make room for the special tokens and for a merge.
_REPLACED = {0xF5: "<|im_start|>", 0xF6: "<|im_end|>", 0xF7: "hi"}
_SPECIAL = frozenset({0xF5, 0xF6})
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in GPT-2's vocabulary (openai/gpt-2, encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def write(path: Path, *, architecture: str = "llama", chat_template: str | None = _TEMPLATE) -> Path:
    """Write the model to path and return it."""
    writer = gguf.GGUFWriter(path, architecture)
    reader = gguf.GGUFReader(TINY_LLAMA)
    for field in reader.fields.values():
        key = field.name.replace("llama.", f"{architecture}.", 1)
        if not field.name.startswith(("GGUF.", "tokenizer.")) and field.name != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    tokens = byte_characters()
    for byte, token in _REPLACED.items():
        tokens[byte] = token
    kinds = [gguf.TokenType.CONTROL if byte in _SPECIAL else gguf.TokenType.NORMAL for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h i"])
    writer.add_eos_token_id(0xF6)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
