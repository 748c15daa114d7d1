"""Codes to signed bytes in registers: inline assembly for four codes at a time, and the same in jnp.

Interpretation and other vendors' GPUs take the jnp form. Both give `v(code)`, which fits a byte in every format: codes
of four or five bits after their zero is taken off, and the tables' values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import code_values
from pallas_kernels.quantized_matmul.triton_codes import codes_of, field_assembly


def value_tile(tiles: list[jax.Array], form: Format, group: int, *, assembly: bool) -> jax.Array:
    """`v(code)` in int8 from the tile of bytes of each plane that holds group number `group`.

    `group` counts from a group whose number divides by all planes' fields.
    """
    if form.signed:
        return jax.lax.bitcast_convert_type(tiles[0], jnp.int8)
    if not assembly:
        return code_values(codes_of(tiles, form, group), form).astype(jnp.int8)
    out = jax.ShapeDtypeStruct(tiles[0].shape, jnp.int8)
    inputs = ",".join("r" * len(tiles))
    text = value_assembly(form, group)
    return plgpu.elementwise_inline_asm(
        text, args=tiles, constraints=f"=r,{inputs}", pack=4, result_shape_dtypes=[out]
    )[0]


def value_assembly(form: Format, group: int) -> str:
    """Instructions from four bytes of each plane, $1 and $2, to four signed bytes, $0; not for planes of eight bits."""
    return "{ .reg .b32 t, h, s, a, b, m; " + " ".join(_steps(form, group)) + " }"


def _steps(form: Format, group: int) -> list[str]:
    if form.table is not None:
        return _table(form.table, group)
    steps, low = [], 0
    for at, bits in enumerate(form.planes, 1):
        steps.append(field_assembly("h" if low else "t", f"${at}", bits, group, low))
        steps += ["or.b32 t, t, h;"] if low else []
        low += bits
    if not form.zero:
        return [*steps, "mov.b32 $0, t;"]
    # A high bit in each byte keeps borrows out of the next one.
    zeros = 0x01010101 * form.zero
    return [*steps, "or.b32 t, t, 0x80808080;", f"sub.u32 t, t, 0x{zeros:08X};", "xor.b32 $0, t, 0x80808080;"]


def _table(table: tuple[int, ...], group: int) -> list[str]:
    """Four of sixteen bytes by permutation: eight entries at a time, then the half that bit 3 names.

    Four codes' low bits side by side are what a permutation selects by: bytes 0, 2, 1, 3, put in order at the end.
    """
    words = [int(word) for word in np.asarray(table, np.int8).view("<u4")]
    steps = ["shr.b32 h, $1, 4;" if group % 2 else "mov.b32 h, $1;", "and.b32 t, h, 0x07070707;"]
    steps += ["shr.b32 s, t, 12;", "or.b32 s, s, t;", "shl.b32 h, h, 4;", "prmt.b32 m, h, 0, 0xB9A8;"]
    for register, (low, high) in (("a", words[:2]), ("b", words[2:])):
        steps.append(f"mov.b32 t, 0x{low:08X}; mov.b32 h, 0x{high:08X}; prmt.b32 {register}, t, h, s;")
    # Bits of b where the mask is set, of a elsewhere.
    return [*steps, "lop3.b32 t, m, b, a, 0xCA;", "prmt.b32 $0, t, 0, 0x3120;"]
