"""Which tokens begin, end and separate a text, and which of them end a generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

__all__ = ["Defaults", "SpecialTokens", "read_flag", "read_id", "read_special_tokens"]

# Files name one end token at most; chat models stop at others too. These texts end a generation
# wherever they occur in a vocabulary (llama.cpp's list).
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Fill-in-the-middle markers. A model that reaches padding, a new repository or a new file has ended its
# text; the other three only count as control tokens.
FIM_END_TEXTS: Mapping[str, tuple[str, ...]] = {
    "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep_token_id": ("<|file_sep|>",),
}
FIM_TEXTS: Mapping[str, tuple[str, ...]] = {
    "fim_pre_token_id": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf_token_id": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid_token_id": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
}  # fmt: skip
FIM_LEGACY_KEYS = {
    "fim_pre_token_id": "prefix_token_id",
    "fim_suf_token_id": "suffix_token_id",
    "fim_mid_token_id": "middle_token_id",
}
# gpt-oss writes its channel headers with these; they are part of the visible text.
VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a tokenizer model means when the file says nothing."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Special ids (None: the vocabulary has none) and the flags that place them around a text."""

    bos: int | None
    eos: int | None
    unk: int | None
    sep: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    add_sep: bool
    add_space_prefix: bool
    end_ids: frozenset[int]


def read_id(metadata: Mapping[str, Any], name: str, default: int | None, size: int) -> int | None:
    """An id under `tokenizer.ggml.`; one outside the vocabulary counts as unsaid."""
    value = metadata.get(PREFIX + name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
        return value
    return default if default is not None and default < size else None


def read_flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean under `tokenizer.ggml.`."""
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{PREFIX}{name} must be a boolean, got {value!r}")
    return value


def _named(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, key: str, texts: Iterable[str]
) -> tuple[int | None, bool]:
    """The id that the file names under `key`, else the first of `texts` present; and whether it was found by text."""
    named = read_id(metadata, key, None, len(vocabulary))
    if named is None and key in FIM_LEGACY_KEYS:
        named = read_id(metadata, FIM_LEGACY_KEYS[key], None, len(vocabulary))
    if named is not None:
        return named, False
    return next((vocabulary.ids[text] for text in texts if text in vocabulary.ids), None), True


def _end_tokens(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[set[int], dict[int, TokenType]]:
    """End tokens found in the vocabulary, and the types that these findings correct."""
    types: dict[int, TokenType] = {}
    ends: set[int] = set()
    for key, texts in {**FIM_END_TEXTS, **FIM_TEXTS}.items():
        token_id, by_text = _named(metadata, vocabulary, key, texts)
        if token_id is not None and key in FIM_END_TEXTS:
            ends.add(token_id)
        if token_id is not None and by_text:
            types[token_id] = TokenType.CONTROL
    for text in END_TEXTS:
        if text in vocabulary.ids:
            ends.add(vocabulary.ids[text])
            types[vocabulary.ids[text]] = TokenType.CONTROL
    types.update({vocabulary.ids[text]: TokenType.USER_DEFINED for text in VISIBLE_TEXTS if text in vocabulary.ids})
    return ends, types


def _drop_ordinary_ends(ends: set[int], types: dict[int, TokenType], vocabulary: Vocabulary) -> None:
    """Take back texts that end a generation elsewhere but are ordinary beside certain neighbours."""
    texts = {vocabulary.tokens[token_id]: token_id for token_id in ends}
    calls = not texts.keys().isdisjoint({"<|call|>", "<|calls|>"})
    returns = not texts.keys().isdisjoint({"<|return|>", "<|flush|>"})
    if calls and returns and "<|end|>" in texts:  # it closes a message there, and the next message follows
        ends.discard(texts["<|end|>"])
        types[texts["<|end|>"]] = TokenType.USER_DEFINED
    if "</s>" in texts and not texts.keys().isdisjoint({"<|tool_response>", "<|plamo:eos|>"}):  # an HTML tag there
        ends.discard(texts["</s>"])
        types[texts["</s>"]] = TokenType.NORMAL


def read_special_tokens(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, defaults: Defaults
) -> tuple[SpecialTokens, Vocabulary]:
    """Read ids and flags; return them with the vocabulary whose token types they correct.

    Converters often leave chat end tokens typed as ordinary text. Left so they would be printed, and
    never parsed from a template's output.
    """
    size = len(vocabulary)
    eos = read_id(metadata, "eos_token_id", defaults.eos, size)
    ends, types = _end_tokens(metadata, vocabulary)
    for token_id in (eos, read_id(metadata, "eot_token_id", None, size), read_id(metadata, "eom_token_id", None, size)):
        if token_id is not None:
            ends.add(token_id)
    _drop_ordinary_ends(ends, types, vocabulary)
    special = SpecialTokens(
        bos=read_id(metadata, "bos_token_id", defaults.bos, size),
        eos=eos,
        unk=read_id(metadata, "unknown_token_id", defaults.unk, size),
        sep=read_id(metadata, "seperator_token_id", defaults.sep, size),
        pad=read_id(metadata, "padding_token_id", defaults.pad, size),
        add_bos=read_flag(metadata, "add_bos_token", defaults.add_bos),
        add_eos=read_flag(metadata, "add_eos_token", defaults.add_eos),
        add_sep=read_flag(metadata, "add_sep_token", defaults.add_sep),
        add_space_prefix=read_flag(metadata, "add_space_prefix", defaults.add_space_prefix),
        end_ids=frozenset(ends),
    )
    return special, vocabulary.retyped(types)
