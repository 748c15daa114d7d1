"""Pre-tokenizer kinds: the patterns that cut text into words before byte-level BPE, by `tokenizer.ggml.pre`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from realm_jax.tokenizer.errors import TokenizerError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "pre_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """Patterns applied in turn, each cutting the words that the one before it left.

    What a pattern matches becomes a word, and so does each stretch between its matches.
    `ignore_merges`: a word that is a token is not rebuilt from merges. `add_bos`, `add_sep`: what the
    kind implies where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False


# Building blocks. \p{..} are Unicode categories, \s is Unicode white space.
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s+(?!\S)|\s+"
_LINES_AND_SPACES = r"\s*[\r\n]+|" + _SPACES
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_LLAMA3 = f"{_ANY_CASE_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_MARKS}|{_LINES_AND_SPACES}"
_QWEN2 = f"{_ANY_CASE_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_MARKS}|{_LINES_AND_SPACES}"

_DIGITS_THEN_GPT2 = PreTokenizer(patterns=(r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer(patterns=(_GPT2,))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "gpt-2": _PLAIN_GPT2,
        "smollm": _DIGITS_THEN_GPT2,
        "starcoder": _DIGITS_THEN_GPT2,
        "refact": _DIGITS_THEN_GPT2,
        "command-r": _DIGITS_THEN_GPT2,
        "llama-bpe": PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True),
        "qwen2": PreTokenizer(patterns=(_QWEN2,)),
    }
)


def pre_tokenizer(name: str) -> PreTokenizer:
    """Look a kind up; a name that is not known is an error, for a guess would tokenise wrongly in silence."""
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"tokenizer.ggml.pre must be one of {', '.join(sorted(PRE_TOKENIZERS))}, got {name!r}; "
            "a file of this kind cannot be tokenised"
        )
    return PRE_TOKENIZERS[name]
