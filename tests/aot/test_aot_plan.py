"""Plans of models known by their shapes: sizes by hand, and steps that compile for every target within a minute."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aot_models import open_without_data

from realm_jax import gguf
from realm_jax.plan.compiling import Compilation
from realm_jax.plan.document import as_json
from realm_jax.plan.report import make_plan
from realm_jax.plan.request import PlanRequest

ROOT = Path(__file__).parents[2]


def header_of(name: str, folder: Path) -> Path:
    """The header of a model in a file of its own."""
    file = open_without_data(name, folder)
    size = min(tensor.start for tensor in file.tensors.values())
    header = folder / f"{name}-header.gguf"
    with file.paths[0].open("rb") as whole:
        header.write_bytes(whole.read(size))
    return header


def plan(path: Path, *words: str) -> dict[str, Any]:
    """The document that `realm plan` prints, in a process of its own; it takes less than a minute."""
    command = "import sys; from realm_jax.cli import main; sys.exit(main())"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", command, "plan", str(path), "--compile", "--json", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.monotonic() - start < 60
    return json.loads(done.stdout)


def test_llama_3_8b_takes_what_its_shape_says(tmp_path: Path) -> None:
    """32 layers of width 4096, 8 heads of keys with 128 channels; embeddings in Q4_K, the head in Q6_K.

    A word has scale and offset of 32 weights in Q4_K, a half float the scale of 16 in Q6_K. Rows come by 128: those of
    the vocabulary are no whole number of that on each of eight devices, all others are.
    """
    file = gguf.open(header_of("llama-3-8b-q4_k_m", tmp_path), header_only=True)
    request = PlanRequest(target="v5e-8", chips=8, context=8192, batch=16)
    document = as_json(make_plan(file, request, Compilation(steps={})))
    vectors = 4 * 4096 * (2 * 32 + 1)
    stored = {"Q4_K": 4 / 8 + 4 / 32, "Q6_K": 6 / 8 + 2 / 16}
    blocks = [tensor for tensor in file.tensors.values() if tensor.name.startswith("blk.") and len(tensor.shape) > 1]
    layers = sum(stored[tensor.ggml_type.name] * math.prod(tensor.shape) for tensor in blocks)
    lookup, head = (math.ceil(128256 / 8 / 128) * 128 * 4096 * stored[kind] for kind in ("Q4_K", "Q6_K"))
    sizes = document["bytes_per_device"]
    assert sizes["weights"] == layers / 8 + lookup + head + vectors
    assert sizes["kv_cache"] == 32 * (16 * 128 + 1) * 64 * 2 * 1 * 128 * 2
    decode = document["roofline"]["decode"]
    embeddings = 128256 * 4096
    unread = lookup * (128256 - 16) / 128256
    kv = 16 * 32 * 2 * 1 * 128 * 2 * (8192 + 1)
    assert decode["bytes"] == pytest.approx(sizes["weights"] - unread + kv, abs=2)
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336
    operations = 16 * (2 * (32 * layer + embeddings) + 32 * 4 * 4096 * 8192) // 8
    assert decode["operations"] == operations
    assert decode["tokens_per_second"] == pytest.approx(16 * 819e9 / decode["bytes"])
    assert {row["role"]: row["axis"] for row in document["split"]}["ffn_down"] == "columns"
    assert document["kv_cache_parts"] == 8


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h100", "a100", "v5e-1", "v5e-8", "v6e-4"])
@pytest.mark.parametrize("name", ["smollm2-135m-q4_1", "llama-3-8b-q4_k_m"])
def test_every_target_is_planned_within_a_minute(name: str, target: str, tmp_path: Path) -> None:
    document = plan(header_of(name, tmp_path), "--target", target)
    assert document["fits"] and document["not_compiled"] is None
    assert set(document["compiled"]) == {"decode", "prefill"}
    for step in document["compiled"].values():
        assert step["aliased_bytes"] > 0 and step["unknown_loops"] == 0
        assert step["kernels"] > 0
    assert document["fallbacks"] == {}


@pytest.mark.aot
def test_split_arguments_are_the_sizes_that_were_planned(tmp_path: Path) -> None:
    """On CUDA arrays have no padding; the integers of a batch and the frequencies of the rotation come on top."""
    document = plan(header_of("smollm2-135m-q4_1", tmp_path), "--target", "h100", "--tp", "2", "--context", "512")
    assert 0 <= document["bytes_per_device"]["padding"] < 4096


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "target", "more"),
    [
        ("smollm2-135m-q4_1", "h100", ("--context", "128")),
        ("smollm2-135m-q4_1", "v6e-1", ()),
        ("smollm2-135m-q4_1", "v5e-8", ()),
        ("smollm2-135m-q4_1", "h100", ("--tp", "4")),
        ("smollm2-135m-q4_1", "h100", ("--tp", "4", "--context", "1")),
        ("smollm2-135m-q4_1", "h100", ("--tp", "4", "--context", "128")),
        ("llama-3-8b-q4_k_m", "v5e-8", ()),
        ("llama-3-8b-q4_k_m", "v6e-4", ()),
        ("qwen3-30b-a3b-q4_k_m", "v5e-8", ()),
        ("qwen3-30b-a3b-q4_k_m", "h100", ("--tp", "4")),
    ],
)
def test_decode_moves_little_more_than_weights_and_kv(
    tmp_path: Path, name: str, target: str, more: tuple[str, ...]
) -> None:
    document = plan(header_of(name, tmp_path), "--target", target, *more)
    assert 1.0 <= document["bytes_moved"]["ratio"] <= 1.25
