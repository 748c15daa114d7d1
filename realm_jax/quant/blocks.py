"""Decoding of GGUF weight blocks to float32: one entry point over the format modules.

======== ======= ====== =======
type     weights  bytes  bits/w
======== ======= ====== =======
Q1_0         128     18   1.125
Q4_0          32     18     4.5
Q4_1          32     20       5
Q5_0          32     22     5.5
Q5_1          32     24       6
Q8_0          32     34     8.5
Q8_1          32     36       9
Q2_K         256     84   2.625
Q3_K         256    110  3.4375
Q4_K         256    144     4.5
Q5_K         256    176     5.5
Q6_K         256    210  6.5625
Q8_K         256    292   9.125
TQ1_0        256     54  1.6875
TQ2_0        256     66  2.0625
MXFP4         32     17    4.25
NVFP4         64     36     4.5
IQ4_NL        32     18     4.5
IQ4_XS       256    136    4.25
IQ2_XXS      256     66  2.0625
IQ2_XS       256     74  2.3125
IQ2_S        256     82  2.5625
IQ3_XXS      256     98  3.0625
IQ3_S        256    110  3.4375
IQ1_S        256     50  1.5625
IQ1_M        256     56    1.75
======== ======= ====== =======
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Array, Float32, UInt8

from realm_jax.gguf import GGMLType
from realm_jax.quant.formats import codebook_quants, fp4, kquants, legacy, ternary

Decoder = Callable[[UInt8[Array, "*lead bytes"]], Float32[Array, "*lead weights"]]

_DECODERS: Mapping[GGMLType, Decoder] = MappingProxyType(
    {
        GGMLType.Q1_0: ternary.decode_q1_0,
        GGMLType.Q4_0: legacy.decode_q4_0,
        GGMLType.Q4_1: legacy.decode_q4_1,
        GGMLType.Q5_0: legacy.decode_q5_0,
        GGMLType.Q5_1: legacy.decode_q5_1,
        GGMLType.Q8_0: legacy.decode_q8_0,
        GGMLType.Q8_1: legacy.decode_q8_1,
        GGMLType.Q2_K: kquants.decode_q2_k,
        GGMLType.Q3_K: kquants.decode_q3_k,
        GGMLType.Q4_K: kquants.decode_q4_k,
        GGMLType.Q5_K: kquants.decode_q5_k,
        GGMLType.Q6_K: kquants.decode_q6_k,
        GGMLType.Q8_K: kquants.decode_q8_k,
        GGMLType.TQ1_0: ternary.decode_tq1_0,
        GGMLType.TQ2_0: ternary.decode_tq2_0,
        GGMLType.MXFP4: fp4.decode_mxfp4,
        GGMLType.NVFP4: fp4.decode_nvfp4,
        GGMLType.IQ4_NL: fp4.decode_iq4_nl,
        GGMLType.IQ4_XS: fp4.decode_iq4_xs,
        GGMLType.IQ2_XXS: codebook_quants.decode_iq2_xxs,
        GGMLType.IQ2_XS: codebook_quants.decode_iq2_xs,
        GGMLType.IQ2_S: codebook_quants.decode_iq2_s,
        GGMLType.IQ3_XXS: codebook_quants.decode_iq3_xxs,
        GGMLType.IQ3_S: codebook_quants.decode_iq3_s,
        GGMLType.IQ1_S: codebook_quants.decode_iq1_s,
        GGMLType.IQ1_M: codebook_quants.decode_iq1_m,
    }
)


def decode_blocks(ggml_type: GGMLType, blocks: UInt8[Array, "*lead bytes"]) -> Float32[Array, "*lead weights"]:
    """Decode blocks of `ggml_type`, any leading axes: `uint8[*lead, type_size] -> float32[*lead, block_size]`.

    Pure, and jit- and vmap-friendly with `ggml_type` static. The result equals ggml's own float32 decoding bit for bit,
    but for subnormal results where XLA flushes them. Raises ValueError for a type without a block decoder and for a
    last axis that is not one block.
    """
    decoder = _DECODERS.get(ggml_type)
    if decoder is None:
        raise ValueError(f"block types are {', '.join(t.name for t in _DECODERS)}, got {ggml_type.name}")
    size = ggml_type.type_size
    if blocks.shape[-1] != size:
        raise ValueError(f"the last axis must be the {size} bytes of a {ggml_type.name} block, got {blocks.shape}")
    return decoder(blocks)
