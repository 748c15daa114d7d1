"""Owns the tests of `realm plan`: its verdict, its document, what it refuses, and what it says without plug-ins."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Realm, process_environment

from realm_jax.plan.compiling import compile_steps, why_not
from realm_jax.plan.devices import DEVICES
from realm_jax.plan.request import PlanRequest

NUMBER, TEXT, COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}
MAYBE = {"type": ["integer", "null"], "minimum": 0}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with these properties, all of them and no others."""
    listed = {"properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "object", **listed}


ROOFLINE = closed(
    tokens=COUNT, bytes=COUNT, operations=COUNT, memory_seconds=NUMBER, compute_seconds=NUMBER, seconds=NUMBER,
    tokens_per_second=NUMBER, bound={"enum": ["memory", "compute"]},
)  # fmt: skip
SCHEMA = closed(
    schema={"const": 2},
    model=closed(architecture=TEXT, layers=COUNT, parameters=COUNT, file_bytes=COUNT, trained_context=COUNT),
    target=closed(
        name=TEXT, device=TEXT, chips=COUNT, memory=COUNT, bandwidth=NUMBER, bfloat16=NUMBER, int8=NUMBER, source=TEXT
    ),
    settings=closed(
        context=COUNT, batch=COUNT, tp=COUNT, kv_cache_dtype=TEXT, implementation=TEXT
    ),
    fits={"type": "boolean"},
    bytes_per_device=closed(weights=COUNT, kv_cache=COUNT, padding=MAYBE, temporaries=MAYBE, total=COUNT),
    room=closed(context=MAYBE, batch=MAYBE),
    split={"type": "array", "items": closed(role=TEXT, axis={"type": ["string", "null"]}, parts=COUNT, tensors=COUNT)},
    kv_cache_parts=COUNT,
    fallbacks={"type": "object", "additionalProperties": TEXT},
    roofline=closed(decode=ROOFLINE, prefill=ROOFLINE),
    bytes_moved={"type": ["object", "null"]},
    compiled={"type": "object"},
    not_compiled={"type": ["string", "null"]},
)  # fmt: skip
TARGETS = ("h100", "a100", "v5e-8", "v6e-4")


@pytest.mark.parametrize("target", TARGETS)
def test_the_document_has_the_names_that_stay(realm: Realm, tiny: str, target: str) -> None:
    document = realm("plan", tiny, "--target", target, "--no-compile", "--json").json
    jsonschema.validate(document, SCHEMA)
    assert document["fits"] and document["not_compiled"] == "--no-compile was given"
    sizes = document["bytes_per_device"]
    assert sizes["total"] == sizes["weights"] + sizes["kv_cache"]
    assert document["settings"]["context"] == 256 and document["room"]["context"] == 256


def test_the_verdict_comes_first(realm: Realm, tiny: str) -> None:
    lines = realm("plan", tiny, "--target", "h100", "--no-compile", "--batch", "2").out.splitlines()
    start, _, rest = lines[0].partition(": ")
    assert start == "fits" and " of 80.0 GB, temporaries aside; decode <= " in rest
    assert lines[0].endswith("tokens/s at batch 2 (memory-bound)")
    assert "compiled: no, because --no-compile was given" in lines


def test_no_accelerator_is_taken_that_is_there(tiny: str, tmp_path: Path) -> None:
    """In a process of its own, where nothing has imported jax before."""
    program = (
        "import sys\n"
        "from realm_jax.cli import main\n"
        f"code = main(['plan', {tiny!r}, '--target', 'h100', '--no-compile', '--json'])\n"
        "import jax\n"
        "sys.exit(code or jax.config.jax_platforms != 'cpu')"
    )
    environment = process_environment(tmp_path)
    del environment["JAX_PLATFORMS"]
    subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, check=True)


def test_a_cache_of_8_bits_is_smaller(realm: Realm, tiny: str) -> None:
    words = ("plan", tiny, "--target", "h100", "--no-compile", "--json")
    floats, coded = realm(*words).json, realm(*words, "--kv-cache-dtype", "q8_0").json
    assert coded["settings"]["kv_cache_dtype"] == "q8_0"
    # 16 channels of 2 bytes, or of a byte each with a scale of 4.
    assert coded["bytes_per_device"]["kv_cache"] * 32 == floats["bytes_per_device"]["kv_cache"] * 20
    refused = realm(*words, "--kv-cache-dtype", "int8")
    assert refused.code == 1 and "kv_cache_dtype must be one of float32, float16, bfloat16, q8_0" in refused.err


def test_what_does_not_fit_says_so(realm: Realm, tiny: str) -> None:
    words = ("plan", tiny, "--target", "v5e-1", "--no-compile", "--batch", "500000")
    assert realm(*words).out.startswith("does not fit: ")
    document = realm(*words, "--json").json
    assert not document["fits"]
    fitting = realm(*words[:-1], str(document["room"]["batch"]), "--json").json
    assert fitting["fits"]
    assert not realm(*words[:-1], str(document["room"]["batch"] + 1), "--json").json["fits"]


def test_a_split_says_what_is_whole(realm: Realm, tiny: str) -> None:
    """The two heads of keys of the model do not divide by eight devices; its matrices do."""
    out = realm("plan", tiny, "--target", "v5e-8", "--no-compile").out
    assert "implementation: tpu\n" in out and "fallbacks: none" in out
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if "device" in line or "parts" in line
    }
    assert rows["KV"] == "cache 2 whole on every device"
    assert rows["attn_q"] == "2 rows in 8 parts"
    assert realm("plan", tiny, "--target", "h100", "--no-compile").out.count("parts") == 0


def test_a_header_is_enough(realm: Realm, tiny: str, tmp_path: Path) -> None:
    from realm_jax import gguf

    header = tmp_path / "header.gguf"
    header.write_bytes(Path(tiny).read_bytes()[: min(t.start for t in gguf.open(tiny).tensors.values())])
    words = ("--target", "a100", "--no-compile", "--json")
    assert realm("plan", str(header), *words).json == realm("plan", tiny, *words).json


def test_what_cannot_be_planned_is_refused(realm: Realm, tiny: str) -> None:
    realm("plan", tiny, "--target", "h900").assert_refused("target must be one of h100, a100, v5e-1")
    realm("plan", tiny, "--target", "v6e-4", "--tp", "8").assert_refused("tp must be 1 to 4 on v6e-4, got 8")
    assert realm("plan", tiny).code == 2
    assert realm("plan", tiny, "--target", "h100", "--context", "0").code == 2


missing = {name: why_not(device) for name, device in DEVICES.items()}


@pytest.mark.skipif(not missing["h100"], reason="the plug-ins are installed")
def test_a_compilation_that_cannot_be_done_is_refused_or_told(realm: Realm, tiny: str) -> None:
    realm("plan", tiny, "--target", "h100", "--compile").assert_refused("--compile cannot be done: jax-cuda12-plugin")
    out = realm("plan", tiny, "--target", "h100").out
    assert "compiled: no, because jax-cuda12-plugin is not installed; " in out
    assert "pip install 'realm-jax[aot]'" in out


@pytest.mark.skipif(not missing["h100"], reason="the plug-ins are installed")
def test_a_compiler_that_ends_is_told(tiny: str) -> None:
    """The process itself, without what it needs."""
    request = PlanRequest(target="h100", chips=1, context=64)
    compilation = compile_steps(tiny, request, os.environ, seconds=600)
    assert not compilation.steps
    assert "cuda" in compilation.failure.lower() and "\n" not in compilation.failure
