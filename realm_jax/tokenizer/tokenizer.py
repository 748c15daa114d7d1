"""The tokenizer that a GGUF file describes: text to ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

from realm_jax.tokenizer.chat_template import ChatTemplate, read_chat_template
from realm_jax.tokenizer.detokenizer import StreamDetokenizer
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.models import TokenizerParts, build_parts
from realm_jax.tokenizer.partition import Partition
from realm_jax.tokenizer.vocabulary import TokenType

__all__ = ["Tokenizer"]

_REMEMBERED_PIECES = 2**15  # a few megabytes; most text is made of far fewer different tokens


class Tokenizer:
    """Encodes and decodes text with the vocabulary of a GGUF file; build one with `from_gguf`."""

    def __init__(self, parts: TokenizerParts, metadata: Mapping[str, Any]) -> None:
        self._parts = parts
        self._vocabulary, self._special, self._encoder = parts.vocabulary, parts.special, parts.encoder
        self._size = len(parts.vocabulary)
        self._piece = lru_cache(_REMEMBERED_PIECES)(parts.encoder.piece)
        self._hidden = frozenset(parts.vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
        self._metadata = {key: metadata[key] for key in metadata if key.startswith("tokenizer.chat_template")}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from `GGUFFile.metadata`; `TokenizerError` names what is missing or unsupported."""
        return cls(build_parts(metadata), metadata)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._vocabulary)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self._special.bos

    @property
    def eos_id(self) -> int | None:
        """The one end token that the file names."""
        return self._special.eos

    @property
    def pad_id(self) -> int | None:
        """The token that fills a batch."""
        return self._special.pad

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a generation: end of text, of turn, of message, and their kin."""
        return self._special.end_ids

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Control and unknown tokens: those that `skip_special` leaves out of a text."""
        return self._hidden

    @property
    def add_bos(self) -> bool:
        """Whether `encode` begins with `bos_id`."""
        return self._special.add_bos and self._special.bos is not None

    @property
    def add_eos(self) -> bool:
        """Whether `encode` ends with `eos_id`."""
        return self._special.add_eos and self._special.eos is not None

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's chat templates, or None."""
        return read_chat_template(self._metadata, self._token_texts())

    def _token_texts(self) -> dict[str, str]:
        """The special tokens as templates write them; one that the vocabulary lacks is empty."""
        special = self._special
        ids = {"bos": special.bos, "eos": special.eos, "unk": special.unk, "pad": special.pad, "sep": special.sep}
        return {
            f"{name}_token": "" if token_id is None else self._vocabulary.tokens[token_id]
            for name, token_id in ids.items()
        }

    @cached_property
    def _plain_partition(self) -> Partition:
        return self._partition(self._vocabulary.of_type(TokenType.USER_DEFINED))

    @cached_property
    def _full_partition(self) -> Partition:
        return self._partition([*self._vocabulary.of_type(TokenType.USER_DEFINED), *self._hidden])

    def _partition(self, special: list[int]) -> Partition:
        return Partition(self._vocabulary.tokens, special, lstrip=self._parts.lstrip, rstrip=self._parts.rstrip)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Translate text to ids.

        `add_special` adds begin, end and separator tokens as the file asks. `parse_special` reads control
        tokens written in the text (`<|im_end|>`) as such; without it they are ordinary characters, as
        text from outside should be. User-defined tokens are read either way.
        """
        _require_utf8(text)
        bos = self._special.bos
        ids = [bos] if add_special and self.add_bos and bos is not None else []
        partition = self._full_partition if parse_special else self._plain_partition
        after_special = True
        for fragment in partition.split(text):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids.extend(self._encoder.encode(fragment, after_special))
            after_special = isinstance(fragment, int)
        return ids + self._ending() if add_special else ids

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of plain text that goes on from earlier tokens: nothing is added to it, not even a space in front."""
        _require_utf8(text)
        fragments = self._plain_partition.split(text)
        return [
            token_id
            for fragment in fragments
            for token_id in ([fragment] if isinstance(fragment, int) else self._encoder.encode(fragment, False))
        ]

    def _ending(self) -> list[int]:
        special = self._special
        ends = [(special.add_eos, special.eos), (special.add_sep, special.sep)]
        return [token_id for wanted, token_id in ends if wanted and token_id is not None]

    def id_to_piece(self, token_id: int) -> bytes:
        """The bytes of one token, control tokens as they are written; may be part of a character."""
        if not 0 <= token_id < self._size:
            raise TokenizerError(f"a token id must be at least 0 and below {self._size}, got {token_id}")
        return self._piece(token_id)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Translate ids to text; `skip_special` leaves control tokens out, and invalid UTF-8 becomes U+FFFD.

        Ids that begin with `bos_id` are a whole text: the space that some vocabularies put in front of it
        is taken off again. Other ids continue a text and keep theirs.
        """
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def detokenizer(self, *, skip_special: bool = True) -> StreamDetokenizer:
        """A new stream: push ids one by one, get text as soon as its characters are whole."""
        hidden = self._hidden if skip_special else frozenset()
        return StreamDetokenizer(
            lambda token_id: b"" if token_id in hidden else self.id_to_piece(token_id),
            prefixed_after=self._special.bos if self._parts.leading_space else None,
        )


def _require_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text must be valid Unicode, got the lone surrogate {text[error.start]!r} at position {error.start}; "
            "decode the input with errors='replace'"
        ) from error
