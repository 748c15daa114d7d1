"""Owns a llama of 300 kB that can be run and chatted with: random weights and a vocabulary of bytes."""

from pathlib import Path

import gguf
import gguf.quants
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HIDDEN = 2, 64, 4, 2, 96
VOCABULARY, CONTEXT = 256, 256

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


def tensors() -> dict[str, np.ndarray]:
    """Return random weights under llama.cpp's names; matrices keep the size of what they are applied to."""
    rng = np.random.default_rng(0)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv_width, WIDTH),
            "attn_v": (kv_width, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    scales = {
        name: shape[1] ** -0.5 if name.startswith("blk") and len(shape) == 2 else 1.0 for name, shape in shapes.items()
    }
    return {
        f"{name}.weight": (scales[name] * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }


def write(
    path: Path,
    *,
    architecture: str = "llama",
    chat_template: str | None = _TEMPLATE,
    matrices: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write the model to path, its matrices in a type of choice, and return the path."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, data in tensors().items():
        kind = matrices if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = byte_characters()
    for byte, token in _REPLACED.items():
        tokens[byte] = token
    kinds = [gguf.TokenType.CONTROL if byte in _SPECIAL else gguf.TokenType.NORMAL for byte in range(VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h i"])
    writer.add_eos_token_id(0xF6)
    writer.add_add_bos_token(False)
