"""WordPiece (`bert`) on the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence

from realm_jax.tokenizer.encoder import SPACE_MARK, is_text, literal_piece
from realm_jax.tokenizer.errors import TokenizerError
from realm_jax.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

__all__ = ["WordPieceEncoder"]


class WordPieceEncoder:
    """BERT's normalisation, then the longest tokens that make up each word; a word of over 100 characters is unknown.

    GGUF marks the beginning of a word (U+2581) where BERT's own vocabulary marks its continuation (`##`).
    """

    def __init__(self, vocabulary: Vocabulary, *, unk: int | None, lowercase: bool, strip_accents: bool) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        if unk is None or not is_text(vocabulary.tokens[unk]):
            raise TokenizerError(f"{PREFIX}unknown_token_id must name a token for unknown words, got {unk}")
        self._vocabulary = vocabulary
        hidden = set(vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
        unknown = vocabulary.tokens[unk]
        ids = {
            text[1:] if text.startswith(SPACE_MARK) else "##" + text: token_id
            for text, token_id in vocabulary.ids.items()
            if token_id not in hidden and is_text(text)
        }
        self._tokenizer = Tokenizer(
            WordPiece(
                ids | {unknown: unk}, unk_token=unknown, max_input_chars_per_word=100, continuing_subword_prefix="##"
            )
        )
        self._tokenizer.normalizer = BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode(self, fragment: str, after_special: bool) -> Sequence[int]:
        """Ids of one fragment."""
        del after_special
        return self._tokenizer.encode(fragment, add_special_tokens=False).ids

    def piece(self, token_id: int) -> bytes:
        """A word's first piece begins with a space."""
        literal = literal_piece(self._vocabulary, token_id)
        if literal is not None:
            return literal
        return self._vocabulary.tokens[token_id].replace(SPACE_MARK, " ").encode("utf-8", "surrogateescape")
