"""Chooses the tokenizer model that `tokenizer.ggml.model` names, with llama.cpp's defaults for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realm_jax.tokenizer.bpe import BytePairEncoder
from realm_jax.tokenizer.encoder import Encoder
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.pretokenizers import pre_tokenizer
from realm_jax.tokenizer.special import Defaults, SpecialTokens, read_special_tokens
from realm_jax.tokenizer.spm import ModelKind, SentencePieceEncoder, SentencePieceOptions
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, read_vocabulary

__all__ = ["build_model"]

MODELS = ("gpt2", "llama")
Parts = tuple[Vocabulary, SpecialTokens, Encoder, frozenset[int]]


def build_model(metadata: Mapping[str, Any]) -> Parts:
    """Read the vocabulary and build its encoder."""
    name = metadata.get(PREFIX + "model")
    match name:
        case "gpt2":
            return _byte_level(metadata)
        case "llama":
            return _sentencepiece(metadata)
        case _:
            raise TokenizerError(f"{PREFIX}model must be one of {', '.join(MODELS)}, got {name!r}")


def _byte_level(metadata: Mapping[str, Any]) -> Parts:
    pre = pre_tokenizer(metadata.get(PREFIX + "pre", "default"))
    defaults = Defaults(bos=11, eos=11, add_bos=pre.add_bos, add_sep=pre.add_sep)
    special, vocabulary = read_special_tokens(metadata, read_vocabulary(metadata), defaults)
    return vocabulary, special, BytePairEncoder(vocabulary, metadata, pre), frozenset()


def _sentencepiece(metadata: Mapping[str, Any]) -> Parts:
    defaults = Defaults(bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True)
    special, vocabulary = read_special_tokens(metadata, read_vocabulary(metadata), defaults)
    options = SentencePieceOptions(kind=ModelKind.BPE, unk=special.unk or 0, add_space_prefix=special.add_space_prefix)
    return vocabulary, special, SentencePieceEncoder(vocabulary, options), _right_stripping(metadata, vocabulary)


def _right_stripping(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> frozenset[int]:
    """Phi-3's special tokens swallow the white space after them; no file says so but by its name."""
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(i for i in special if vocabulary.tokens[i] not in kept) | (
        frozenset({vocabulary.ids["</s>"]}) if "</s>" in vocabulary.ids else frozenset()
    )
