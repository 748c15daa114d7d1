"""Codes to bfloat16 in registers: inline assembly for four codes at a time, and the same in jnp.

Interpretation and other vendors' GPUs take the jnp form. Both give `v(code) + bias`: a code of up to six bits becomes
the mantissa of a bfloat16 between 128 and 255, which takes one byte permutation for two codes, and for formats with
offsets the 128 stays, to be taken off together with the offset.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.quantized_matmul.formats import Format
from pallas_kernels.quantized_matmul.layouts import code_values, half_to_float


def bias_of(form: Format, exact: bool) -> int:
    """What `load_values` adds to values: 128 where formats have offsets, unless `exact`."""
    return 128 if form.offset and not exact else 0


def code_tile(tiles: list[jax.Array], form: Format, group: int, *, exact: bool, assembly: bool) -> jax.Array:
    """`v(code) + bias` in bfloat16 from the tile of bytes of each plane that holds group number `group`.

    `group` counts from a group whose number divides by all planes' fields.
    """
    if not assembly:
        return _plain(tiles, form, group, exact)
    out = jax.ShapeDtypeStruct(tiles[0].shape, jnp.bfloat16)
    inputs = ",".join("r" * len(tiles))
    return plgpu.elementwise_inline_asm(
        code_assembly(form, group, exact=exact),
        args=tiles,
        constraints=f"=r,=r,{inputs}",
        pack=4,
        result_shape_dtypes=[out],
    )[0]


def word_half(words: jax.Array, form: Format, high: bool, *, assembly: bool) -> jax.Array:
    """The lower or upper 16-bit float of each word, in float32."""
    if not assembly:
        return half_to_float(words >> 16 if high else words & 0xFFFF, form.wide)
    text = word_assembly(form, high)
    out = jax.ShapeDtypeStruct(words.shape, jnp.float32)
    return plgpu.elementwise_inline_asm(text, args=[words], constraints="=r,r", pack=1, result_shape_dtypes=[out])[0]


def group_scale(
    words: tuple[jax.Array, ...], form: Format, t: int, count: int, *, assembly: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and offset, float32, of group t of those whose words `WeightRows.words` brought."""
    half = functools.partial(word_half, form=form, assembly=assembly)
    if not form.supers:
        word = words[t if form.offset else t // 2]
        if form.offset:
            return half(word, high=False), half(word, high=True)
        return half(word, high=t % 2 == 1), None
    own, above = words[t // 4], words[count // 4 + t // 16]
    times = functools.partial(_times, byte=t % 4, assembly=assembly)
    if form.offset:
        low, high = own & 0x0F0F0F0F, own >> 4 & 0x0F0F0F0F
        return times(low, half(above, high=False), zero=0), times(high, half(above, high=True), zero=0)
    return times(own, half(above, high=False), zero=32), None


def _times(words: jax.Array, factor: jax.Array, *, byte: int, zero: int, assembly: bool) -> jax.Array:
    """`(b - zero) factor` for a byte b < 128 of each word; exact, for the factor is a half float.

    The byte becomes the mantissa of `128 + b`, which takes one permutation, and what is too much goes in the product.
    """
    if assembly:
        out = jax.ShapeDtypeStruct(words.shape, jnp.float32)
        text = byte_assembly(byte)
        shifted = plgpu.elementwise_inline_asm(
            text, args=[words], constraints="=r,r", pack=1, result_shape_dtypes=[out]
        )[0]
    else:
        bits = (words >> (8 * byte) & 0xFF) << 16 | jnp.uint32(0x43000000)
        shifted = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return multiply_add(shifted, factor, factor * jnp.float32(-128 - zero), assembly=assembly)


def byte_assembly(byte: int) -> str:
    """Instructions from a word, $1, to the float32 of 128 and one of its bytes, $0."""
    return "{ " + f"prmt.b32 $0, $1, 0x00000043, 0x4{byte}55;" + " }"


def word_assembly(form: Format, high: bool) -> str:
    """Instructions from a word, $1, to the float32 of its half, $0."""
    if form.wide:
        return "{ and.b32 $0, $1, 0xFFFF0000; }" if high else "{ shl.b32 $0, $1, 16; }"
    return "{ .reg .b16 a, b; mov.b32 {a, b}, $1; cvt.f32.f16 $0, " + ("b" if high else "a") + "; }"


def multiply_add(a: jax.Array, b: jax.Array, c: jax.Array, *, assembly: bool) -> jax.Array:
    """`a b + c` in one instruction, which XLA's compiler would make two of; all of one shape, float32."""
    if not assembly:
        return a * b + c
    out = jax.ShapeDtypeStruct(a.shape, a.dtype)
    return plgpu.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;", args=[a, b, c], constraints="=r,r,r,r", pack=1, result_shape_dtypes=[out]
    )[0]


def scaled(codes: jax.Array, scale: jax.Array, offset: jax.Array | None, *, assembly: bool) -> jax.Array:
    """`codes scale + offset`, rounded once to bfloat16; all bfloat16 of one shape."""
    if not assembly:
        product = codes.astype(jnp.float32) * scale.astype(jnp.float32)
        return (product if offset is None else product + offset.astype(jnp.float32)).astype(jnp.bfloat16)
    args = [codes, scale] if offset is None else [codes, scale, offset]
    text = scaled_assembly(offset is not None)
    out = jax.ShapeDtypeStruct(codes.shape, jnp.bfloat16)
    return plgpu.elementwise_inline_asm(
        text, args=args, constraints=",".join(["=r", *"r" * len(args)]), pack=2, result_shape_dtypes=[out]
    )[0]


def scaled_assembly(offset: bool) -> str:
    """Instructions from pairs of codes, scales and offsets, $1 to $3, to pairs of weights, $0."""
    addend = "$3" if offset else "z"
    return "{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, $2, " + addend + "; }"


def _plain(tiles: list[jax.Array], form: Format, group: int, exact: bool) -> jax.Array:
    return (code_values(codes_of(tiles, form, group), form) + bias_of(form, exact)).astype(jnp.bfloat16)


def codes_of(tiles: list[jax.Array], form: Format, group: int) -> jax.Array:
    """The codes of group number `group`, uint8, from the tile of bytes of each plane that holds it."""
    codes, low = jnp.zeros_like(tiles[0]), 0
    for tile, bits in zip(tiles, form.planes, strict=True):
        codes |= (tile >> (group % (8 // bits) * bits) & ((1 << bits) - 1)) << low
        low += bits
    return codes


def _pair(value: float) -> int:
    """Two bfloat16 of one value."""
    return 0x00010001 * int(np.asarray(value, jnp.bfloat16).view(np.uint16))


def code_assembly(form: Format, group: int, *, exact: bool) -> str:
    """Instructions from four bytes of each plane, $2 and $3, to two pairs of bfloat16, $0 and $1."""
    return "{ .reg .b32 t, h, s, a, b, c, d, m, o, x, y, z; " + _steps(form, group, exact) + " }"


def _steps(form: Format, group: int, exact: bool) -> str:
    if form.signed:
        return _signed_bytes()
    if form.table is not None:
        return _table(form.table, group)
    steps = [field_assembly("t", "$2", form.planes[0], group, 0), *_more_bits(form, group)]
    steps += [f"prmt.b32 ${i}, t, 0x43434343, {s};" for i, s in ((0, "0x4140"), (1, "0x4342"))]
    if not bias_of(form, exact):
        steps += _add_constant(-(128.0 + form.zero))
    return " ".join(steps)


def _more_bits(form: Format, group: int) -> list[str]:
    low, steps = form.planes[0], []
    for at, bits in enumerate(form.planes[1:], 3):
        steps += [field_assembly("h", f"${at}", bits, group, low), "or.b32 t, t, h;"]
        low += bits
    return steps


def field_assembly(register: str, source: str, bits: int, group: int, to: int) -> str:
    """Instructions from four bytes to each one's field for a group, at bit `to`."""
    shift = group % (8 // bits) * bits - to
    mask = 0x01010101 * (((1 << bits) - 1) << to)
    moved = f"shr.b32 {register}, {source}, {shift};" if shift > 0 else f"shl.b32 {register}, {source}, {-shift};"
    first = f"mov.b32 {register}, {source};" if shift == 0 else moved
    return f"{first} and.b32 {register}, {register}, 0x{mask:08X};"


def _add_constant(value: float) -> list[str]:
    setup = f"mov.b32 a, 0x{_pair(1):08X}; mov.b32 b, 0x{_pair(value):08X};"
    return [setup, *(f"fma.rn.bf16x2 ${i}, ${i}, a, b;" for i in (0, 1))]


def _signed_bytes() -> str:
    """`(128 + low seven bits) - (128 or 256)`: two bfloat16 whose mantissas hold the parts of a byte."""
    pairs = (
        f"prmt.b32 ${i}, t, 0x43434343, {s}; prmt.b32 a, h, 0x43434343, {s}; fma.rn.bf16x2 ${i}, a, m, ${i};"
        for i, s in ((0, "0x4140"), (1, "0x4342"))
    )
    return f"mov.b32 m, 0xBF80BF80; and.b32 t, $2, 0x7F7F7F7F; and.b32 h, $2, 0x80808080; {' '.join(pairs)}"


def _table(table: tuple[int, ...], group: int) -> str:
    """Each byte of the sixteen bfloat16 by permutation: eight entries at a time, then the half that bit 3 names.

    Two bytes of codes are a selector as they lie once bit 3 is cleared, which would choose a byte's sign. It brings
    entries of both groups, and what is done for one group the compiler need not do again for the other. Where the upper
    half of the table is the lower one with the other sign, bit 3 becomes that sign.
    """
    bits = np.asarray(table, jnp.bfloat16).view(np.uint16)
    low, high = ([int(word) for word in part.astype(np.uint8).view("<u4")] for part in (bits & 0xFF, bits >> 8))
    negated = table[8:] == tuple(-value for value in table[:8])
    steps = [_ZERO, "and.b32 s, $2, 0x77777777; shl.b32 h, $2, 4;"]
    # Bits 3 of two bytes of h and of the codes in turn: as they are, or spread over a byte each.
    signs = ("0x5140", "0x7362") if negated else ("0xD9C8", "0xFBEA")
    for i, (first, second) in enumerate((("a", "b"), ("c", "d"))):
        steps += ["shr.b32 s, s, 16;"] * i + [f"prmt.b32 m, h, $2, {signs[i]};"]
        steps += _entry(first, low[:2]) if negated else _chosen(first, low)
        steps += [*_entry(second, high[:2]), _with_sign(second)] if negated else _chosen(second, high)
    own = "0x7351" if group % 2 else "0x6240"
    return " ".join([*steps, f"prmt.b32 $0, a, b, {own}; prmt.b32 $1, c, d, {own};"])


# A zero, o, that the assembler does not know for one: a constant it would move into a register for each of its uses.
_ZERO = "mov.b32 x, %lanemask_eq; mov.b32 y, %lanemask_lt; and.b32 o, x, y;"


def _entry(register: str, words: list[int]) -> list[str]:
    """The bytes of eight, in two words, that the selector s names; one operand of a permutation may be a constant."""
    return [f"or.b32 x, o, 0x{words[0]:08X}; mov.b32 y, 0x{words[1]:08X}; prmt.b32 {register}, x, y, s;"]


def _chosen(register: str, words: list[int]) -> list[str]:
    """Bytes of the second eight of sixteen where the mask m is set, of the first elsewhere."""
    steps = [*_entry("z", words[:2]), *_entry(register, words[2:])]
    return [*steps, f"lop3.b32 {register}, m, {register}, z, 0xCA;"]


def _with_sign(register: str) -> str:
    return f"and.b32 m, m, 0x80808080; or.b32 {register}, {register}, m;"
