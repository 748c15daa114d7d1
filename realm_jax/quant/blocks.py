"""Decoding of GGUF weight blocks to float32: one entry point over the format modules."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jax import Array
from jaxtyping import Float32, UInt8

from realm_jax.gguf import GGMLType
from realm_jax.quant.formats import kquants, legacy

Decoder = Callable[[UInt8[Array, "*lead bytes"]], Float32[Array, "*lead weights"]]

_DECODERS: Mapping[GGMLType, Decoder] = MappingProxyType(
    {
        GGMLType.Q4_0: legacy.decode_q4_0,
        GGMLType.Q4_1: legacy.decode_q4_1,
        GGMLType.Q5_0: legacy.decode_q5_0,
        GGMLType.Q5_1: legacy.decode_q5_1,
        GGMLType.Q8_0: legacy.decode_q8_0,
        GGMLType.Q4_K: kquants.decode_q4_k,
        GGMLType.Q5_K: kquants.decode_q5_k,
        GGMLType.Q6_K: kquants.decode_q6_k,
    }
)


def decode_blocks(ggml_type: GGMLType, blocks: UInt8[Array, "*lead bytes"]) -> Float32[Array, "*lead weights"]:
    """Decode whole blocks of ``ggml_type``, any leading axes, to ``block_size`` float32 weights each.

    Pure and jit-friendly with ``ggml_type`` static. Raises ValueError for a type that has no block decoder.
    """
    decoder = _DECODERS.get(ggml_type)
    if decoder is None:
        raise ValueError(f"decode_blocks supports {', '.join(t.name for t in _DECODERS)}; got {ggml_type.name}")
    return decoder(blocks)
