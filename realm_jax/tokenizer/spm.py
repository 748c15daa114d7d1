"""SentencePiece models (`llama`, `t5`): builds the ModelProto that the sentencepiece library loads from metadata."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realm_jax.tokenizer.encoder import SPACE_MARK, literal_piece
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

__all__ = ["ModelKind", "SentencePieceEncoder", "SentencePieceOptions"]


class ModelKind(enum.IntEnum):
    """TrainerSpec.model_type in sentencepiece_model.proto."""

    UNIGRAM = 1
    BPE = 2


@dataclass(frozen=True, kw_only=True)
class SentencePieceOptions:
    """How text reaches the pieces: `charsmap` is SentencePiece's compiled table of replacements (NFKC for T5)."""

    kind: ModelKind
    unk: int
    add_space_prefix: bool
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


# One `pieces` entry of ModelProto. Lengths take three bytes each (a varint may be longer than it must),
# so that every entry has the same frame and numpy can lay out all of them at once:
#
#   0a LL LL LL | 0a ll ll ll  text...  15 ss ss ss ss  18 tt
#   field 1, L    field 1, l   text     score (float)   type
_HEAD = np.frombuffer(b"\x0a\x80\x80\x00\x0a\x80\x80\x00", np.uint8)
_TAIL = np.frombuffer(b"\x15\x00\x00\x00\x00\x18\x00", np.uint8)
_LENGTH_LIMIT = 1 << 21


def _put_varint3(frame: np.ndarray, column: int, values: np.ndarray) -> None:
    for i in range(3):
        frame[:, column + i] |= ((values >> (7 * i)) & 0x7F).astype(np.uint8)


def _pieces(texts: Sequence[bytes], scores: np.ndarray, types: np.ndarray) -> bytes:
    """Serialise all pieces: `scores` float32[n], `types` of TokenType[n]."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if lengths.max() >= _LENGTH_LIMIT - 16:
        raise TokenizerError(f"a token must be shorter than {_LENGTH_LIMIT - 16} bytes, got {lengths.max()}")
    heads = np.tile(_HEAD, (len(texts), 1))
    _put_varint3(heads, 1, lengths + (len(_HEAD) - 4 + len(_TAIL)))
    _put_varint3(heads, 5, lengths)
    tails = np.tile(_TAIL, (len(texts), 1))
    tails[:, 1:5] = scores.astype("<f4").view(np.uint8).reshape(-1, 4)
    tails[:, 6] = types
    # Where each text starts among the texts alone, and how far the frames before it push it.
    frame = len(_HEAD) + len(_TAIL)
    starts = np.cumsum(lengths) - lengths + frame * np.arange(len(texts))
    out = np.empty(int(lengths.sum()) + frame * len(texts), np.uint8)
    out[starts[:, None] + np.arange(len(_HEAD))] = heads
    out[(starts + lengths)[:, None] + np.arange(len(_HEAD), frame)] = tails
    inside = np.arange(int(lengths.sum())) + np.repeat(frame * np.arange(len(texts)) + len(_HEAD), lengths)
    out[inside] = np.frombuffer(b"".join(texts), np.uint8)
    return out.tobytes()


def _piece_types(vocabulary: Vocabulary, options: SentencePieceOptions, byte_fallback: bool) -> np.ndarray:
    """Types as the library wants them: exactly one unknown piece, byte pieces all or none.

    User-defined tokens were cut out beforehand; as normal pieces they merge by score like any other.
    """
    types = vocabulary.types.copy()
    types[types == TokenType.USER_DEFINED] = TokenType.NORMAL
    types[types == TokenType.UNKNOWN] = TokenType.CONTROL
    types[types == TokenType.UNDEFINED] = TokenType.UNUSED
    if not byte_fallback:
        types[types == TokenType.BYTE] = TokenType.UNUSED
    types[options.unk] = TokenType.UNKNOWN
    return types


def model_proto(vocabulary: Vocabulary, options: SentencePieceOptions) -> bytes:
    """Serialise a sentencepiece ModelProto."""
    if vocabulary.scores is None:
        raise TokenizerError(f"{PREFIX}scores is missing; a SentencePiece vocabulary is merged by score")
    byte_fallback = int((vocabulary.types == TokenType.BYTE).sum()) == 256
    texts = [text.encode("utf-8", "surrogateescape") for text in vocabulary.tokens]
    trainer = _number(3, options.kind) + _number(35, byte_fallback) + _number(40, options.unk)
    pieces = _pieces(texts, vocabulary.scores, _piece_types(vocabulary, options, byte_fallback))
    return pieces + _bytes(2, trainer) + _bytes(3, _normalizer_spec(options))


def _normalizer_spec(options: SentencePieceOptions) -> bytes:
    """Unigram models normalise in the library; for BPE, spaces are written by the caller as its context asks."""
    unigram = options.kind is ModelKind.UNIGRAM
    return (
        _bytes(1, b"identity" if not options.charsmap else b"precompiled")
        + _bytes(2, options.charsmap)
        + _number(3, unigram and options.add_space_prefix)
        + _number(4, unigram and options.remove_extra_whitespaces)
        + _number(5, unigram)
    )


class SentencePieceEncoder:
    """Pieces merged by score (`llama`) or chosen by likelihood (`t5`), with bytes for what no piece covers."""

    def __init__(self, vocabulary: Vocabulary, options: SentencePieceOptions) -> None:
        import sentencepiece

        self._vocabulary, self._options = vocabulary, options
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_proto(vocabulary, options))
        except RuntimeError as error:
            raise TokenizerError(f"sentencepiece refuses this vocabulary: {error}") from error

    def encode(self, fragment: str, after_special: bool) -> Sequence[int]:
        """Ids of one fragment; spaces become U+2581 and, where the file says so, one is put in front."""
        if self._options.kind is ModelKind.UNIGRAM:
            return self._processor.EncodeAsIds(fragment)
        if after_special and self._options.add_space_prefix:
            fragment = " " + fragment
        return self._processor.EncodeAsIds(fragment.replace(" ", SPACE_MARK))

    def piece(self, token_id: int) -> bytes:
        """U+2581 read as a space again."""
        literal = literal_piece(self._vocabulary, token_id)
        if literal is not None:
            return literal
        return self._vocabulary.tokens[token_id].replace(SPACE_MARK, " ").encode("utf-8", "surrogateescape")
