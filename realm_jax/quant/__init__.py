"""Block formats of GGML: decoding in jnp, layouts, and the pytree that keeps weights in them."""

from cpu_kernels import Arena
from realm_jax.quant.blocks import decode_blocks
from realm_jax.quant.layouts import LAYOUTS, layout_for
from realm_jax.quant.mapped import MappedTensor, aval_of, mapped
from realm_jax.quant.qtensor import QTensor, abstract, dequantize, from_raw, stored_shape_dtype, take_rows

__all__ = [
    "LAYOUTS",
    "Arena",
    "MappedTensor",
    "QTensor",
    "abstract",
    "aval_of",
    "decode_blocks",
    "dequantize",
    "from_raw",
    "layout_for",
    "mapped",
    "stored_shape_dtype",
    "take_rows",
]
