"""Tables of block sizes: which entry a shape takes, what is refused, and that those of the package fit every case."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from matmul_inputs import activations, assert_close, stored_case

import pallas_kernels.quantized_matmul as kernels
from pallas_kernels import tuning
from pallas_kernels.case import KernelCase, Search
from pallas_kernels.paged_attention import cases as attention_cases
from pallas_kernels.paged_attention.config import Shape, TritonConfig, triton_heuristic
from pallas_kernels.paged_attention.config import config_for as attention_config_for
from pallas_kernels.quantized_matmul import cases as matmul_cases
from pallas_kernels.quantized_matmul.config import (
    DecodeConfig,
    MatmulShape,
    PrefillConfig,
    TpuConfig,
    config_for,
    decode_heuristic,
)
from realm_jax.plan.devices import DEVICES

KERNEL = "quantized_matmul decode"
SHAPE = MatmulShape(kind="Q4_K", tokens=8, rows=4096, columns=4096)
ALL: tuple[KernelCase, ...] = (*matmul_cases.CASES, *attention_cases.CASES)
SHIPPED = sorted(tuning.SHIPPED.glob("*.json"))

Write = Callable[..., Path]


def entry(config: dict[str, Any], kernel: str = KERNEL, format: str = "Q4_K", **sizes: int) -> dict[str, Any]:
    return {"kernel": kernel, "format": format, "sizes": sizes, "config": config}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a table of the user's for the device that the tests have."""
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path))

    def table(*entries: dict[str, Any], device_kind: str = "cpu", **changes: Any) -> Path:
        content = {"device_kind": device_kind, "made": "here", "versions": {}, "entries": list(entries), **changes}
        path = tmp_path / "table.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return table


def test_without_a_table_the_heuristic_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path / "none"))
    assert config_for(SHAPE, "triton") == decode_heuristic(SHAPE)


def test_an_entry_gives_some_fields_and_the_heuristic_the_others(write: Write) -> None:
    write(entry({"rows": 64}))
    assert config_for(SHAPE, "triton") == decode_heuristic(SHAPE, rows=64)
    assert config_for(dataclasses.replace(SHAPE, kind="Q6_K"), "triton").rows == 32
    assert config_for(dataclasses.replace(SHAPE, tokens=32), "triton") == PrefillConfig(
        tokens=32, rows=64, warps=4, groups=2
    )


def test_the_entry_that_names_most_sizes_wins(write: Write) -> None:
    write(entry({"rows": 64}), entry({"rows": 128}, tokens=8, rows=4096), entry({"rows": 16, "warps": 1}, tokens=16))
    assert config_for(SHAPE, "triton").rows == 128
    # A class reaches from above the last power of two to its own.
    assert config_for(dataclasses.replace(SHAPE, rows=2176), "triton").rows == 128
    assert config_for(dataclasses.replace(SHAPE, rows=2048), "triton").rows == 64
    assert config_for(dataclasses.replace(SHAPE, tokens=16), "triton").rows == 16


def test_an_entry_that_does_not_fit_the_shape_is_passed_over(write: Write) -> None:
    write(entry({"rows": 128}, tokens=8), entry({"rows": 64}))
    assert config_for(dataclasses.replace(SHAPE, rows=4160), "triton").rows == 64
    assert config_for(dataclasses.replace(SHAPE, rows=4128), "triton") == decode_heuristic(
        dataclasses.replace(SHAPE, rows=4128)
    )


def test_the_device_that_is_compiled_for_counts(write: Write) -> None:
    write(entry({"rows": 64}), device_kind="NVIDIA X*")
    assert config_for(SHAPE, "triton").rows == 32
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA X100", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        assert config_for(SHAPE, "triton").rows == 64


def test_the_folder_lies_in_the_cache_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tuning.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    assert tuning.user_folder() == Path("/a/cache/realm-jax/tables")
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, "/b")
    assert tuning.user_folder() == Path("/b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"made": 3}, "made of a table must be of type str, got 3"),
        ({"extra": 1}, "a table must be an object with device_kind, made, versions, entries, got"),
        ({"entries": [{"kernel": KERNEL}]}, "an entry must be an object with kernel, format, sizes, config, got"),
        ({"entries": [entry({"rows": "64"})]}, "config must be positive integers, got '64'"),
        ({"entries": [entry({"rows": 64}, tokens=12)]}, "sizes must be powers of two, got 12"),
        ({"entries": [entry({"wraps": 2})]}, "config of quantized_matmul decode Q4_K: .*'wraps'"),
        (
            {"entries": [entry({"rows": 64}, heads=8)]},
            "sizes of quantized_matmul decode must be among .*'heads'",
        ),
    ],
)
def test_a_malformed_table_is_refused(changes: dict[str, Any], message: str, write: Write) -> None:
    path = write(**changes)
    with pytest.raises(ValueError, match=f"{path} is no table of block sizes: {message}.*delete it and tune again"):
        config_for(SHAPE, "triton")


def test_a_file_that_is_not_json_is_refused(write: Write) -> None:
    write().write_text("{")
    with pytest.raises(ValueError, match="it must be JSON: .*delete it and tune again"):
        config_for(SHAPE, "triton")


@pytest.mark.parametrize(
    ("tokens", "backend", "config", "message"),
    [
        (8, "triton", DecodeConfig(rows=48), "rows must be a power of two from 16 on that divides 4096, got 48"),
        (8, "triton", DecodeConfig(warps=4), "warps must be a power of two up to rows / 16, got 4 for 32 rows"),
        (8, "triton", DecodeConfig(groups=3), "groups must be a multiple of 2 for Q4_K, got 3"),
        (8, "triton", DecodeConfig(splits=3), "splits must divide the 16 trips of 8 groups, got 3"),
        (64, "triton", PrefillConfig(tokens=128), "tokens must be a power of two from 16 on that divides 64, got 128"),
        (64, "triton", PrefillConfig(tokens=16, rows=16), "warps must be a power of two with 16 x 8 results each"),
        (64, "triton", PrefillConfig(tokens=64, groups=1), "groups must be a multiple of 2 for Q4_K, got 1"),
        (8, "tpu", TpuConfig(tokens=8, rows=64, columns=512), "rows must be a multiple of 128 that divides 4096"),
        (8, "tpu", TpuConfig(tokens=3, rows=128, columns=512), "tokens must be a multiple of 8 that divides 8, or all"),
        (
            8,
            "tpu",
            TpuConfig(tokens=8, rows=128, columns=768),
            "columns must be all 4096, or of more than 1024 a",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tokens: int, backend: Any, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(dataclasses.replace(SHAPE, tokens=tokens), backend, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TritonConfig(rows=8), "rows must be a power of two from 16 on, got 8"),
        (TritonConfig(rows=16, keys=48), "keys must be a power of two from 16 on that divides 64, got 48"),
        (TritonConfig(rows=16, warps=3), "warps must be a power of two, got 3"),
    ],
)
def test_a_configuration_of_attention_that_does_not_fit_is_refused(config: TritonConfig, message: str) -> None:
    shape = Shape(tokens=1, sequences=1, heads=32, kv_heads=8, width=128, block_size=64, pages=16)
    with pytest.raises(ValueError, match=message):
        attention_config_for(shape, "bfloat16", config)


@pytest.mark.parametrize(
    ("changes", "keys", "warps"),
    [
        ({}, 64, 4),
        ({"width": 256}, 64, 8),
        ({"width": 64, "itemsize": 4}, 64, 4),
        ({"itemsize": 4}, 32, 4),
        ({"width": 256, "itemsize": 4}, 16, 8),
        ({"width": 256, "tokens": 1}, 64, 4),
    ],
)
def test_attention_takes_what_registers_hold(changes: dict[str, int], keys: int, warps: int) -> None:
    given = {"tokens": 512, "sequences": 1, "heads": 8, "kv_heads": 4, "width": 128, "block_size": 64, "pages": 16}
    config = triton_heuristic(Shape(**{**given, **changes}))
    assert (config.keys, config.warps) == (keys, warps)


@pytest.mark.parametrize("backend", ["triton", "tpu"])
def test_candidates_are_legal(backend: Any) -> None:
    """The heuristic's first, which is legal too; a TPU's attention has none."""
    for case in ALL:
        search = case.search(backend) if backend in case.backends else None
        if search is None:
            continue
        for config in search.candidates[:: max(1, len(search.candidates) // 4)]:
            search.program(config)
        assert len(set(search.candidates)) == len(search.candidates)


@pytest.mark.parametrize(
    "config", [DecodeConfig(rows=16, warps=1, groups=2), DecodeConfig(rows=64, groups=2, splits=2)]
)
def test_products_of_other_blocks_lie_within_the_same_bound(config: DecodeConfig) -> None:
    kind, rows, columns = "Q4_1", 64, 128
    blocks, stored = stored_case(kind, rows, columns, "triton")
    x = activations(3, columns)
    y = kernels.quantized_matmul(x, stored, kind, (rows, columns), backend="triton", interpret=True, config=config)
    assert_close(kind, "triton", x, blocks, y)


@functools.cache
def searches(backend: Any) -> list[Search]:
    """Of all cases that have any."""
    every = (case.search(backend) for case in ALL if backend in case.backends)
    return [search for search in every if search is not None]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_table_fits_every_case_that_it_decides(path: Path) -> None:
    table = tuning.read_table(path)
    assert path.stem in DEVICES and table.made == "compiled, not measured" and table.versions["jax"]
    for found in table.entries:
        decided = [
            search
            for search in searches("tpu" if "TPU" in table.device_kind else "triton")
            if (search.kernel, search.format) == (found.kernel, found.format)
            and all(tuning.size_class(search.sizes[name]) == size for name, size in found.sizes.items())
        ]
        assert decided, f"{found} is for no case"
        for search in decided:
            first = search.candidates[0]
            search.program(dataclasses.replace(first, **found.config, **dict.fromkeys(search.derived, 1)))
        assert set(found.facts) == {"with this", "heuristic"}
        # What an H100 and an A100 start in the time that they read a code of four bits in.
        assert found.facts["with this"].get("instructions_per_code", 0) <= 5
