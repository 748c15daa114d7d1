"""Bytes moved, against counts by hand: of texts of programs, and of small programs compiled here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from realm_jax.plan.hlo import arrays_of, read_program
from realm_jax.plan.traffic import bytes_moved

TABLE, ROW = 1000, 64


def compiled(function: Callable[..., Any], *shapes: Any, donate: tuple[int, ...] = ()) -> str:
    """The text of a program for the CPU."""
    return jax.jit(function, donate_argnums=donate).lower(*shapes).compile().as_text()


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,16]{1,0}", 512),
        ("bf16[3]{0}", 6),
        ("s4[5,2]{1,0}", 5),
        ("pred[]", 1),
        ("f8e4m3fn[7]{0}", 7),
        ("(f32[2]{0}, /*index=1*/u8[3,4]{1,0:T(8,128)(4,1)})", 20),
        # What a TPU keeps in its vector memory does not come from its main memory.
        ("bf16[64,128]{1,0:T(8,128)(2,1)S(1)}", 0),
    ],
)
def test_shapes_have_bytes(shape: str, expected: float) -> None:
    assert sum(array.bytes for array in arrays_of(shape)) == expected


def test_arithmetic_reads_and_writes_whole_arrays() -> None:
    text = compiled(lambda a, b: jnp.tanh(a) + b, f32(TABLE, ROW), f32(TABLE, ROW))
    assert bytes_moved(text).bytes == 3 * 4 * TABLE * ROW


def test_a_gather_reads_the_rows_that_it_returns() -> None:
    text = compiled(lambda table, ids: 2 * table.at[ids].get(mode="promise_in_bounds"), f32(TABLE, ROW), i32(3))
    moved = bytes_moved(text).bytes
    assert 2 * 4 * 3 * ROW <= moved <= 4 * 4 * 3 * ROW + 100  # in one fusion, or in two with a result in between


def test_an_update_in_place_leaves_the_rest_alone() -> None:
    def write(pool: jax.Array, row: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(pool, row, (at, jnp.zeros_like(at)))

    moved = bytes_moved(compiled(write, f32(TABLE, ROW), f32(1, ROW), i32(), donate=(0,))).bytes
    assert 2 * 4 * ROW <= moved <= 2 * 4 * ROW + 32
    # Without donation the whole array is copied first.
    assert bytes_moved(compiled(write, f32(TABLE, ROW), f32(1, ROW), i32())).bytes >= 2 * 4 * TABLE * ROW


FUSED = """HloModule example, is_scheduled=true

%fused (p0: bf16[65,64,2,3,64], p1: s32[4], p2: f32[]) -> f32[4,64,2,3,64] {
  %p0 = bf16[65,64,2,3,64]{4,3,2,1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %p2 = f32[] parameter(2)
  %pages = bf16[4,64,2,3,64]{4,3,2,1,0} gather(%p0, %p1), offset_dims={1,2,3,4}
  %wide = f32[4,64,2,3,64]{4,3,2,1,0} convert(%pages)
  %scale = f32[4,64,2,3,64]{4,3,2,1,0} broadcast(%p2), dimensions={}
  ROOT %product = f32[4,64,2,3,64]{4,3,2,1,0} multiply(%wide, %scale)
}

%written (p0.1: bf16[65,64,2,3,64], p1.1: s32[1,2], p2.1: bf16[1,2,3,64]) -> bf16[65,64,2,3,64] {
  %p0.1 = bf16[65,64,2,3,64]{4,3,2,1,0} parameter(0)
  %p1.1 = s32[1,2]{1,0} parameter(1)
  %p2.1 = bf16[1,2,3,64]{3,2,1,0} parameter(2)
  ROOT %scattered = bf16[65,64,2,3,64]{4,3,2,1,0} scatter(%p0.1, %p1.1, %p2.1), to_apply=%assign
}

%taken (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%p), index=1
  %y = f32[100]{0} negate(%x)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[100]{0}) tuple(%i, %y)
}

%skipped (p.1: (s32[], f32[100])) -> (s32[], f32[100]) {
  ROOT %p.1 = (s32[], f32[100]{0}) parameter(0)
}

ENTRY %main (pool: bf16[65,64,2,3,64], table: s32[4], s: f32[], at: s32[1,2], kv: bf16[1,2,3,64]) -> f32[4,64,2,3,64] {
  %pool = bf16[65,64,2,3,64]{4,3,2,1,0} parameter(0)
  %table = s32[4]{0} parameter(1)
  %s = f32[] parameter(2)
  %at = s32[1,2]{1,0} parameter(3)
  %kv = bf16[1,2,3,64]{3,2,1,0} parameter(4)
  %new = bf16[65,64,2,3,64]{4,3,2,1,0} fusion(%pool, %at, %kv), kind=kLoop, calls=%written
  ROOT %read = f32[4,64,2,3,64]{4,3,2,1,0} fusion(%new, %table, %s), kind=kLoop, calls=%fused
}
"""


def test_pages_count_as_they_are_touched() -> None:
    page, row = 64 * 2 * 3 * 64, 2 * 3 * 64
    written = 2 * (2 * row) + 8  # the new keys and values read and written, their place
    read = 4 * page * (2 + 4) + 4 * 4 + 4  # four pages in bfloat16, the same in float32, their numbers, a scale
    assert bytes_moved(FUSED).bytes == written + read


def entry(line: str) -> str:
    """A program whose entry has one instruction besides its parameters."""
    head, _, _ = FUSED.partition("ENTRY")
    parameters = "  %a = (s32[], f32[100]{0}) parameter(0)\n  %c = s32[] parameter(1)\n  %w = u8[400]{0} parameter(2)\n"
    return f"{head}ENTRY %main (a: f32[1]) -> f32[1] {{\n{parameters}  ROOT {line}\n}}\n"


def test_a_conditional_costs_its_dearest_branch() -> None:
    line = "%d = (s32[], f32[100]{0}) conditional(%c, %a, %a), branch_computations={%skipped, %taken}"
    assert bytes_moved(entry(line)).bytes == 800


def test_attention_reads_what_it_sees_of_a_paged_cache() -> None:
    line = (
        '%k = f32[100]{0} custom-call(%c, %w, %w), custom_call_target="tpu_custom_call", operand_layout_constraints='
        '{s32[], u8[8,5,1,10]{3,2,1,0}, u8[400]{0}}, metadata={op_name="jit(f)/paged_attention_tpu/pallas_call"}'
    )
    assert bytes_moved(entry(line)).bytes == 4 + 400 + 400 + 400
    assert bytes_moved(entry(line), {(8, 5, 1, 10): 0.25}).bytes == 4 + 100 + 400 + 400
    other = line.replace("paged_attention", "moe_grouped_matmul")
    assert bytes_moved(entry(other), {(8, 5, 1, 10): 0.25}).bytes == 4 + 400 + 400 + 400


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ('%k = f32[100]{0} custom-call(%w, %w), custom_call_target="tpu_custom_call"', 2 * 400 + 400),
        (
            '%k = u8[400]{0} custom-call(%w), custom_call_target="x", output_to_operand_aliasing={{}: (0, {})}',
            400,
        ),
        # One block of rows, of one of eight experts.
        (
            '%k = f32[100]{0} custom-call(%c, %w), custom_call_target="tpu_custom_call", operand_layout_constraints='
            '{s32[], u8[8,5,10]{2,1,0}}, metadata={op_name="jit(f)/moe_grouped_matmul_decode/pallas_call"}',
            4 + 400 // 8 + 400,
        ),
        # And of an adapter; an array of four axes is no stack of them.
        (
            '%k = f32[100]{0} custom-call(%c, %w, %w), custom_call_target="tpu_custom_call", '
            "operand_layout_constraints={s32[], u8[8,5,10]{2,1,0}, u8[8,1,5,10]{3,2,1,0}}, "
            'metadata={op_name="jit(f)/grouped_lora_expand/pallas_call"}',
            4 + 400 // 8 + 400 + 400,
        ),
        ("%k = (u8[400]{0:S(1)}, u8[400]{0}, u32[]) copy-start(%w)", 400),
        # A part on its way into vector memory, of which only that is read.
        ("%k = ((u8[400]{0}), u8[40]{0:S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:40]}", 40),
        ("%k = u8[400]{0} all-reduce(%w), replica_groups={}, to_apply=%sum", 800),
        ("%k = u8[40]{0} slice(%w), slice={[0:40]}", 80),
        ("%k = u8[400]{0} bitcast(%w)", 0),
    ],
)
def test_what_is_launched_by_itself_reads_and_writes(line: str, moved: int) -> None:
    assert bytes_moved(entry(line)).bytes == moved


def test_no_more_experts_are_read_than_are_chosen() -> None:
    line = (
        '%k = f32[100]{0} custom-call(%w, %w), custom_call_target="tpu_custom_call", operand_layout_constraints='
        '{s32[100], u8[8,5,10]{2,1,0}}, metadata={op_name="jit(f)/moe_grouped_matmul_decode/pallas_call"}'
    )
    assert bytes_moved(entry(line)).bytes == 400 + 400 + 400
    assert bytes_moved(entry(line), experts_read=2.5).bytes == 400 + 125 + 400
    adapters = line.replace("moe_grouped_matmul_decode", "grouped_lora_expand")
    assert bytes_moved(entry(adapters), experts_read=2.5).bytes == 400 + 400 + 400


def test_a_loop_without_a_known_number_of_trips_is_told() -> None:
    line = "%l = (s32[], f32[100]{0}) while(%a), condition=%skipped, body=%taken"
    moved = bytes_moved(entry(line))
    assert (moved.bytes, moved.unknown_loops) == (800, 1)
    known = line + ', backend_config={"known_trip_count":{"n":"7"}}'
    assert (bytes_moved(entry(known)).bytes, bytes_moved(entry(known)).unknown_loops) == (5600, 0)


def test_a_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="must have an entry, got 'nothing'"):
        read_program("nothing")
