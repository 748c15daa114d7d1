"""What all tests share: checked shapes and types, strict rank promotion, and the two real models."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import psutil
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]


def _modules_with_shapes() -> list[str]:
    """The modules that name shapes of arrays. Checking costs some ten microseconds a call, which others do without."""
    files = (
        file for package in ("realm_jax", "pallas_kernels", "cpu_kernels") for file in (ROOT / package).rglob("*.py")
    )
    named = (
        file.relative_to(ROOT).with_suffix("") for file in files if "from jaxtyping import" in file.read_text("utf-8")
    )
    return [".".join(path.parts) for path in named]


# Only modules imported after this line are checked.
install_import_hook(_modules_with_shapes(), "typechecking.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing leaves millions of objects that stay. To look for garbage among them as often as Python does by itself takes a
# twentieth of all tests' time.
gc.set_threshold(200_000, 50, 50)
# The same examples on every machine and in every run, and none refused for being slow on a busy one.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped_where_they_take_gigabytes() -> Iterator[None]:
    """JAX keeps what it has compiled; few modules call what an earlier one did."""
    yield
    if psutil.Process().memory_info().rss > 3 * 2**30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: architecture llama, byte-level BPE."""
    return _real_model("smollm2", "smollm2-135m-q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma-3-270M, Q4_K_M: architecture gemma3, SentencePiece, 262,144 tokens."""
    return _real_model("gemma3-270m", "gemma3-270m-q4_k_m.gguf")


def _real_model(name: str, file_name: str) -> Path:
    """Find a model in the folder REALM_TEST_MODELS, or else in the library's cache, downloading it the first time."""
    from realm_jax.sources import resolve

    given = Path(os.environ.get("REALM_TEST_MODELS", ""), file_name)
    return given if given.is_file() else resolve(name)
