"""Pre-tokenizer kinds: the patterns that cut text into words before byte-level BPE, by `tokenizer.ggml.pre`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from realm_jax.tokenizer.errors import TokenizerError

__all__ = ["PRE_TOKENIZERS", "SPACE_MARKED", "PreTokenizer", "pre_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """Patterns (Oniguruma's syntax) applied in turn, each cutting the words that the one before it left.

    What a pattern matches becomes a word, and so does each stretch between its matches.
    `ignore_merges`: a word that is a token is not rebuilt from merges. `add_bos`: what the kind implies
    where the file does not say. `byte_level`: tokens are spelled in GPT-2's alphabet of bytes; else in
    characters, with U+2581 for a space and tokens like `<0x0A>` for the bytes of characters they lack.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True


# Alternatives that the kinds share. \p{L}, \p{M}, \p{N}, \p{P}, \p{S}: letters, marks, numbers, punctuation, symbols.
_CONTRACTION = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE_CONTRACTION = r"'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL]"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|" + _SPACES
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# A word's upper-case beginning and lower-case end, so that "parseJson" is two words.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORD = tuple(r"[^\r\n\p{L}\p{N}]?" + _UPPER + a + _LOWER + b for a, b in (("*", "+"), ("+", "*")))
_PATH_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_ASCII_SIGN_WORD = r"[!-/:-@\[-`{-~][A-Za-z]+"
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_CJK = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
# DeepSeek's first models: the cased letters, without some scripts and the mathematical alphabets.
_DEEPSEEK_LETTER = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}"
    r"\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16EFF}\x{1D400}-\x{1DFFF}]]"
)
_DEEPSEEK_SIGN = r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]"
_DEEPSEEK_CJK = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_SENTENCE = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"

_GPT2 = rf"{_CONTRACTION}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_FALCON_SIGNS = r"[\p{P}$+<=>^~|`]+"


def _modern(number: str, *, word: str = _WORD, signs: str = _SIGNS, contraction: str = _ANY_CASE_CONTRACTION) -> str:
    """The form that most models since 2023 share; `number` cuts digits."""
    return "|".join(part for part in (contraction, word, number, signs, _LINES) if part)


def _cased(number: str, *, contraction: bool) -> str:
    """GPT-4o's form: words cut at a change from lower to upper case."""
    suffix = f"(?:{_ANY_CASE_CONTRACTION})?" if contraction else ""
    return "|".join([*(word + suffix for word in _CASED_WORD), number, _PATH_SIGNS, _LINES])


_BY_ONE, _BY_THREE = r"\p{N}", r"\p{N}{1,3}"
_LLAMA3 = _modern(_BY_THREE)
_QWEN2 = _modern(_BY_ONE)
_V3_TAIL = rf"{_ASCII_SIGN_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"

_KINDS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer(patterns=(r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4",
     PreTokenizer(patterns=(_GPT2,))),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", PreTokenizer(patterns=(_BY_ONE, _GPT2))),
    ("falcon", PreTokenizer(patterns=(_FALCON_SIGNS, _GPT2, "[0-9][0-9][0-9]"))),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
     PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True)),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer(patterns=(_LLAMA3,))),
    ("glm4 glm5", PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True)),
    ("minicpm5", PreTokenizer(patterns=(_BY_THREE, _modern(r"\p{N}+")), ignore_merges=True)),
    ("qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2", PreTokenizer(patterns=(_QWEN2,))),
    ("qwen35", PreTokenizer(patterns=(
        _modern(_BY_ONE, word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", signs=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),))),
    ("ufakzeka", PreTokenizer(patterns=(_modern(_BY_ONE, contraction=""),))),
    ("laguna", PreTokenizer(patterns=(r"[^\n]+|\n+", _QWEN2))),
    ("seed-coder", PreTokenizer(patterns=(_modern(_BY_ONE, signs=r" ?[^\s\p{L}\p{N}\r\n]+"),))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer(patterns=(
        rf"{_ANY_CASE_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|{_SPACES}",))),
    ("tekken", PreTokenizer(patterns=(_cased(_BY_ONE, contraction=False),), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4", PreTokenizer(patterns=(_cased(_BY_THREE, contraction=True),))),
    ("deepseek-llm", PreTokenizer(patterns=(
        r"[\r\n]", rf"\s?{_DEEPSEEK_LETTER}+", rf"\s?{_DEEPSEEK_SIGN}+", r"\s+\z", _DEEPSEEK_CJK, r"\p{N}+"))),
    ("deepseek-coder", PreTokenizer(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _BY_ONE))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(patterns=(_BY_THREE, _CJK, _V3_TAIL))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer(patterns=(_SENTENCE,))),
    ("viking", PreTokenizer(patterns=(_SENTENCE, _BY_ONE))),
    ("chameleon", PreTokenizer(add_bos=True, patterns=(
        "<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", _BY_ONE, r"[\p{P}!-/:-@\[-`{-~]", _GPT2))),
)  # fmt: skip

SPACE_MARKED = PreTokenizer(patterns=(r"\n+",), byte_level=False)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: kind for names, kind in _KINDS for name in names.split()}
)


def pre_tokenizer(name: object) -> PreTokenizer:
    """Look a kind up; a name that is not known is an error, for a guess would tokenise wrongly in silence."""
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"tokenizer.ggml.pre must be one of {', '.join(sorted(PRE_TOKENIZERS))}, got {name!r}; "
            "a file of this kind cannot be tokenised"
        )
    return PRE_TOKENIZERS[name]
