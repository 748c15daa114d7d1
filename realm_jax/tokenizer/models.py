"""Chooses the tokenizer model that `tokenizer.ggml.model` names, with llama.cpp's defaults for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from realm_jax.tokenizer.bpe import BytePairEncoder
from realm_jax.tokenizer.encoder import Encoder
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.pretokenizers import SPACE_MARKED, pre_tokenizer
from realm_jax.tokenizer.special import Defaults, SpecialTokens, read_flag, read_id, read_special_tokens
from realm_jax.tokenizer.spm import ModelKind, SentencePieceEncoder, SentencePieceOptions
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, read_vocabulary
from realm_jax.tokenizer.wordpiece import WordPieceEncoder

__all__ = ["TokenizerParts", "build_parts"]


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """What a tokenizer is made of.

    `lstrip`, `rstrip`: special tokens that swallow the white space beside them. `leading_space`: encoding
    writes a space in front of a text.
    """

    vocabulary: Vocabulary
    special: SpecialTokens
    encoder: Encoder
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    leading_space: bool = False


def build_parts(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Read the vocabulary and build its encoder."""
    name = metadata.get(PREFIX + "model")
    if not isinstance(name, str) or name not in MODELS:
        raise TokenizerError(f"{PREFIX}model must be one of {', '.join(sorted(MODELS))}, got {name!r}")
    return MODELS[name](metadata)


def _byte_level(metadata: Mapping[str, Any]) -> TokenizerParts:
    name = metadata.get(PREFIX + "pre")
    pre = pre_tokenizer("default" if name is None or isinstance(name, str) and not name else name)
    defaults = Defaults(add_bos=pre.add_bos)
    special, vocabulary = read_special_tokens(metadata, read_vocabulary(metadata), defaults)
    return TokenizerParts(vocabulary=vocabulary, special=special, encoder=BytePairEncoder(vocabulary, metadata, pre))


def _space_marked(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Gemma 4: SentencePiece's alphabet, merged by rank. It always begins with its begin token."""
    special, vocabulary = read_special_tokens(
        {**metadata, PREFIX + "add_bos_token": True}, read_vocabulary(metadata), Defaults()
    )
    return TokenizerParts(
        vocabulary=vocabulary, special=special, encoder=BytePairEncoder(vocabulary, metadata, SPACE_MARKED)
    )


def _sentencepiece(metadata: Mapping[str, Any]) -> TokenizerParts:
    defaults = Defaults(bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True)
    special, vocabulary = read_special_tokens(metadata, read_vocabulary(metadata), defaults)
    options = SentencePieceOptions(kind=ModelKind.BPE, unk=special.unk or 0, add_space_prefix=special.add_space_prefix)
    return TokenizerParts(
        vocabulary=vocabulary,
        special=special,
        encoder=SentencePieceEncoder(vocabulary, options),
        rstrip=_right_stripping(metadata, vocabulary),
        leading_space=special.add_space_prefix,
    )


def _unigram(metadata: Mapping[str, Any]) -> TokenizerParts:
    defaults = Defaults(eos=1, unk=2, pad=0, add_eos=True)
    special, vocabulary = read_special_tokens(metadata, read_vocabulary(metadata), defaults)
    options = SentencePieceOptions(
        kind=ModelKind.UNIGRAM,
        unk=special.unk or 0,
        add_space_prefix=special.add_space_prefix,
        remove_extra_whitespaces=read_flag(metadata, "remove_extra_whitespaces", False),
        charsmap=_charsmap(metadata),
    )
    mask = frozenset({vocabulary.ids["<mask>"]}) if "<mask>" in vocabulary.ids else frozenset()
    return TokenizerParts(
        vocabulary=vocabulary,
        special=special,
        encoder=SentencePieceEncoder(vocabulary, options),
        leading_space=special.add_space_prefix,
        lstrip=mask if metadata.get("general.architecture") in ("nomic-bert-moe", "jina-bert-v3") else frozenset(),
    )


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    values = metadata.get(PREFIX + "precompiled_charsmap", np.zeros(0, np.uint8))
    if not isinstance(values, np.ndarray) or values.dtype.itemsize != 1:
        raise TokenizerError(f"{PREFIX}precompiled_charsmap must be an array of bytes, got {values!r:.80}")
    return values.tobytes()


def _wordpiece(metadata: Mapping[str, Any]) -> TokenizerParts:
    vocabulary = read_vocabulary(metadata)
    begin = read_id(metadata, "cls_token_id", 101, len(vocabulary))
    defaults = Defaults(bos=begin, unk=100, sep=102, pad=0, add_bos=True, add_sep=True)
    special, vocabulary = read_special_tokens(metadata, vocabulary, defaults)
    lowercase = read_flag(metadata, "normalizer.lowercase", True)
    encoder = WordPieceEncoder(
        vocabulary,
        unk=special.unk,
        lowercase=lowercase,
        strip_accents=read_flag(metadata, "normalizer.strip_accents", lowercase),
    )
    return TokenizerParts(vocabulary=vocabulary, special=special, encoder=encoder, leading_space=True)


def _right_stripping(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> frozenset[int]:
    """Phi-3's special tokens swallow the white space after them; no file says so but by its name."""
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(token_id for token_id in special if vocabulary.tokens[token_id] not in kept)


MODELS: Mapping[str, Callable[[Mapping[str, Any]], TokenizerParts]] = MappingProxyType(
    {"bert": _wordpiece, "gemma4": _space_marked, "gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
)
