"""Block formats of GGML: decoding in jnp, layouts, and the pytree that keeps weights in them."""

from realm_jax.quant.blocks import decode_blocks
from realm_jax.quant.layouts import LAYOUTS, layout_for
from realm_jax.quant.qtensor import QTensor, abstract, dequantize, from_raw, stored_shape_dtype, take_rows

__all__ = [
    "LAYOUTS",
    "QTensor",
    "abstract",
    "decode_blocks",
    "dequantize",
    "from_raw",
    "layout_for",
    "stored_shape_dtype",
    "take_rows",
]
