"""Owns the memory that a model's KV cache takes, computed from metadata alone."""

from dataclasses import dataclass

from realm_jax.gguf import GGUFFile

_CONTEXTS = (2048, 8192, 32768, 131072)


@dataclass(frozen=True, kw_only=True)
class KVCacheNeed:
    """What one token of one sequence adds to the KV cache.

    ``values_per_token`` = sum over layers of kv_heads * (key_length + value_length), numbers of whatever dtype the
    cache has. With a sliding window some layers keep only that many tokens, so `bytes` is an upper bound.
    """

    values_per_token: int
    trained_context: int | None
    sliding_window: int | None

    def bytes(self, context: int, bytes_per_value: int) -> int:
        """Return the bytes that a sequence of context tokens takes in every layer."""
        return self.values_per_token * context * bytes_per_value

    def contexts(self) -> list[int]:
        """Return the contexts worth showing: common ones below the trained one, and that."""
        if self.trained_context is None:
            return list(_CONTEXTS)
        return [context for context in _CONTEXTS if context < self.trained_context] + [self.trained_context]


def kv_cache_need(file: GGUFFile) -> KVCacheNeed | None:
    """Return what the KV cache takes, None where the metadata describes no attention."""
    prefix = file.architecture

    def number(key: str) -> int | None:
        value = file.metadata.get(f"{prefix}.{key}")
        return value if isinstance(value, int) and value > 0 else None

    layers, heads, width = number("block_count"), number("attention.head_count"), number("embedding_length")
    key_length = number("attention.key_length") or (width // heads if width and heads else None)
    per_layer = file.metadata.get(f"{prefix}.attention.head_count_kv", heads)  # one number, or one for each layer
    if layers is None or key_length is None or per_layer is None:
        return None
    kv_heads = layers * per_layer if isinstance(per_layer, int) else sum(per_layer.tolist())
    value_length = number("attention.value_length") or key_length
    return KVCacheNeed(
        values_per_token=kv_heads * (key_length + value_length),
        trained_context=number("context_length"),
        sliding_window=number("attention.sliding_window"),
    )
