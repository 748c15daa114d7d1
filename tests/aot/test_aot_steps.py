"""Kernels and whole steps compile for accelerators that are not here, quantised and with caches updated in place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from aot_rows import Row, table

from pallas_kernels.quantized_matmul import FORMATS

HERE = Path(__file__).parent
TINY = HERE.parent / "data" / "tiny"
TARGETS = ("h100", "a100", "v5e")


def run(program: str, *arguments: str) -> list[str]:
    """Lines of output of a program of this folder."""
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["llama", "gemma3", "gpt_oss_mxfp4"])
def test_a_tiny_model_compiles_through_xla(target: str, model: str) -> None:
    steps = json.loads(run("compile_step.py", target, str(TINY / f"{model}.gguf"), "xla")[-1])
    assert set(steps) == {"decode", "prefill"}
    for step in steps.values():
        assert step["aliased_bytes"] >= step["cache_bytes"]
        # Weights stay as the file stores them; layouts of an accelerator pad small arrays.
        assert step["argument_bytes"] < 1.5 * (step["weight_bytes"] + step["cache_bytes"]) + 4e6


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_a_small_shape_compile(target: str) -> None:
    rows = [Row(**json.loads(line)) for line in run("compile_target.py", target, "kernels", "--match", "640")]
    assert len(rows) == 4
    for row in rows:
        assert (row.failure, row.fallbacks) == ("", 0), row
        # A TPU's schedule moves a few registers to vector memory and back; on CUDA that would be a bus away.
        assert target == "v5e" or row.spills == 0, row


@pytest.mark.aot
@pytest.mark.parametrize(("target", "instruction"), [("h100", "IGMMA.64x128x32.S8.S8"), ("a100", "IMMA.16832.S8.S8")])
def test_activations_in_8_bits_reach_the_integer_tensor_cores(target: str, instruction: str) -> None:
    """One of their instructions takes all 32 columns of a group, and no other multiplies in the loop."""
    (line,) = run("compile_loop.py", target, "Q4_K 512x4096x4096 int8")
    loop = json.loads(line)["loop"]
    products = {name: count for name, count in loop.items() if "MMA" in name}
    assert len(products) == 1 and next(iter(products)).startswith(instruction), products
    # A conversion for each result and group: the sums of a group's products stay apart.
    assert sum(count for name, count in loop.items() if name.startswith("I2F")) == 2 * 128 * 64 / 128


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_attention_compiles_for_heads_that_no_power_of_two_has(target: str) -> None:
    rows = [
        Row(**json.loads(line))
        for line in run("compile_target.py", target, "kernels", "--match", "attention decode 9/3x64")
    ]
    rows += [
        Row(**json.loads(line))
        for line in run("compile_target.py", target, "kernels", "--match", "attention prefill 32/32x80")
    ]
    assert len(rows) == 2
    for row in rows:
        assert (row.failure, row.fallbacks) == ("", 0), row
        assert target == "v5e" or row.spills == 0, row


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "a100"])
@pytest.mark.parametrize("name", ["float32 decode 32/8x128", "attention prefill 4/1x256"])
def test_no_register_of_a_large_head_spills(name: str, target: str) -> None:
    """Keys in float32, and sums of 256 channels."""
    (line,) = run("compile_target.py", target, "kernels", "--match", name)
    row = Row(**json.loads(line))
    assert (row.failure, row.fallbacks, row.spills) == ("", 0, 0), row


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "a100"])
def test_decoding_takes_five_instructions_a_code_at_most(target: str) -> None:
    """In every format, at 16 rows, where they are most."""
    rows = [Row(**json.loads(line)) for line in run("compile_target.py", target, "kernels", "--match", " 16x4096x4096")]
    assert len(rows) == len(FORMATS)
    for row in rows:
        assert (row.failure, row.fallbacks, row.spills) == ("", 0, 0), row
        assert row.per_code is not None and row.per_code <= 5, row


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_products_with_experts_compile(target: str) -> None:
    """Of a size that no power of two divides, for 1, 16 and 512 tokens."""
    rows = [
        Row(**json.loads(line)) for line in run("compile_target.py", target, "kernels", "--match", "of 32x2880x2880")
    ]
    assert len(rows) == 3
    for row in rows:
        assert (row.failure, row.fallbacks) == ("", 0), row
        assert target == "v5e" or row.spills == 0, row


@pytest.mark.aot
@pytest.mark.parametrize(("target", "implementation"), [("h100", "triton"), ("a100", "triton"), ("v5e", "tpu")])
def test_a_tiny_mixture_has_a_call_for_each_of_its_maps(target: str, implementation: str) -> None:
    """Experts in MXFP4, gate, up and down, and the attention in each of two layers; other matrices are float32."""
    steps = json.loads(run("compile_step.py", target, str(TINY / "gpt_oss_mxfp4.gguf"), implementation)[-1])
    assert [step["kernels"] for step in steps.values()] == [2 * (3 + 1)] * 2


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_a_model_keeps_its_weights_quantised(target: str) -> None:
    rows = [Row(**json.loads(line)) for line in run("compile_target.py", target, "models", "--match", "smollm2")]
    assert [(row.failure, row.fallbacks) for row in rows] == [("", 0), ("", 0)]
    # Seven matrices and the attention in each of 30 layers, and the head.
    assert all(row.calls == 8 * 30 + 1 for row in rows)


def test_tables_say_what_failed() -> None:
    rows = [Row(target="h100", name="a", registers=1024, seconds=0.25), Row(target="v5e", name="b", failure="why")]
    lines = table(rows).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")][1:5] == ["h100", "a", "0.2", "1,024"]
    assert lines[3].split("|")[-2].strip() == "FAILED: why"


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_both_halves_of_a_float_are_computed(target: str) -> None:
    """Taken for x itself, the rounded half would leave x - x for the other one."""
    subtractions = [line for line in run("compile_halves.py", target) if " subtract(" in line]
    assert subtractions
    for line in subtractions:
        left, right = line.split(" subtract(")[1].split(")")[0].split(", ")
        assert left != right
