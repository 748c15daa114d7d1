"""Masks of allowed tokens, one bit a token in 32-bit words, and what they do to logits."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

WORD_BITS = 32


def mask_words(vocab_size: int) -> int:
    """Words of a row of a mask."""
    return -(-vocab_size // WORD_BITS)


def forbid(logits: Float[Array, "batch vocab"], mask: Int[Array, "batch words"]) -> Float[Array, "batch vocab"]:
    """`logits`, with -inf where bit `i % 32` of word `i // 32` of the row is 0."""
    place = lax.broadcasted_iota(mask.dtype, (1, 1, WORD_BITS), 2)
    bits = (mask[:, :, None] >> place) & 1
    allowed = bits.reshape(mask.shape[0], -1)[:, : logits.shape[-1]]
    return jnp.where(allowed == 1, logits, -jnp.inf)
