"""BPE by merge ranks (`gpt2`, `gemma4`) on the tokenizers library, built from the file's tokens and merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realm_jax.tokenizer.encoder import SPACE_MARK, is_text, literal_piece
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.pretokenizers import PreTokenizer
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

__all__ = ["BytePairEncoder", "byte_alphabet"]


def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: itself where printable in Latin-1, else from U+0100 upward."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in rank order. A merge is written as two texts with a space between; the first is never empty."""
    lines = metadata.get(PREFIX + "merges")
    if not isinstance(lines, Sequence) or isinstance(lines, str):
        raise TokenizerError(f"{PREFIX}merges is missing; BPE cannot work without its merges")
    pairs = [line.partition(" ")[::2] for line in lines]
    for i, (left, right) in enumerate(pairs):
        if not (left and right):
            cut = lines[i].find(" ", 1)
            if not 0 < cut < len(lines[i]) - 1:
                raise TokenizerError(f"{PREFIX}merges must be two texts with a space between, got {lines[i]!r}")
            pairs[i] = (lines[i][:cut], lines[i][cut + 1 :])
    return pairs


def _model(vocabulary: Vocabulary, merges: list[tuple[str, str]], pre: PreTokenizer) -> Any:
    """The library's BPE model over the ordinary tokens; special ones must not arise from plain text."""
    from tokenizers.models import BPE

    options = {"ignore_merges": pre.ignore_merges, "byte_fallback": not pre.byte_level}
    ids = dict(vocabulary.ids)
    for token_id in vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN):
        del ids[vocabulary.tokens[token_id]]
    # The library panics at a longer result than any token.
    merges = [pair for pair in merges if pair[0] + pair[1] in ids]
    try:
        return BPE(ids, merges, **options)
    except Exception:  # the library raises bare Exception for a merge of unknown tokens
        ids = {text: token_id for text, token_id in ids.items() if is_text(text)}
        return BPE(ids, [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids], **options)


def _library_tokenizer(model: Any, pre: PreTokenizer) -> LibraryTokenizer:
    from tokenizers import Regex, Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokenizer = Tokenizer(model)
    steps: list[Any] = [Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    if pre.byte_level:
        steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = Sequence(steps)
    return tokenizer


class BytePairEncoder:
    """Words cut by the pre-tokenizer's patterns, their characters or bytes merged by rank."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any], pre: PreTokenizer) -> None:
        self._vocabulary, self._byte_level = vocabulary, pre.byte_level
        self._bytes = {char: bytes([byte]) for char, byte in byte_alphabet().items()}
        self._tokenizer = _library_tokenizer(_model(vocabulary, _merges(metadata), pre), pre)

    def encode(self, fragment: str, after_special: bool) -> Sequence[int]:
        """Ids of one fragment; no space is added in front."""
        del after_special
        if not self._byte_level:
            fragment = fragment.replace(" ", SPACE_MARK)
        return self._tokenizer.encode(fragment, add_special_tokens=False).ids

    def piece(self, token_id: int) -> bytes:
        """Each character read back as the byte it stands for; one outside the alphabet stays itself."""
        literal = literal_piece(self._vocabulary, token_id)
        if literal is not None:
            return literal
        text = self._vocabulary.tokens[token_id]
        if not self._byte_level:
            return text.replace(SPACE_MARK, " ").encode("utf-8", "surrogateescape")
        return b"".join(self._bytes.get(char) or char.encode("utf-8", "surrogateescape") for char in text)
