"""Block formats of GGML: decoding in jnp, layouts, and the pytree that keeps weights in them."""

from realm_jax.quant.blocks import decode_blocks
from realm_jax.quant.layouts import LAYOUTS
from realm_jax.quant.mapped import MappedTensor, mapped
from realm_jax.quant.qtensor import QTensor, abstract, dequantize, from_raw, stored_shape_dtype, take_rows

__all__ = [
    "LAYOUTS",
    "MappedTensor",
    "QTensor",
    "abstract",
    "decode_blocks",
    "dequantize",
    "from_raw",
    "mapped",
    "stored_shape_dtype",
    "take_rows",
]
