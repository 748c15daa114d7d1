"""Owns the models of the tests of `LLM`: a quantised one with a tokenizer, and two without."""

import math
from pathlib import Path

import gguf
import pytest
import tiny_chat

from realm_jax import LLM

TINY = Path(__file__).parents[1] / "data" / "tiny"


def load(path: Path) -> LLM:
    """A small cache in small blocks, so that sequences span several."""
    return LLM(path, max_model_len=112, max_num_seqs=2, block_size=16, implementation="xla", quiet=True)


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Two layers in Q4_0 with a vocabulary of bytes and a chat template."""
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    return load(tiny_chat.write(path, matrices=gguf.GGMLQuantizationType.Q4_0))


@pytest.fixture(scope="session")
def native(llm: LLM) -> LLM:
    """The same file on the native kernels, whose results do not depend on what else is computed."""
    return LLM(llm.path, max_model_len=112, max_num_seqs=2, block_size=16, implementation="cpu", quiet=True)


@pytest.fixture(scope="session")
def llama() -> LLM:
    """Two layers with every bias, no tokenizer."""
    return load(TINY / "llama.gguf")


@pytest.fixture(scope="session")
def gemma3() -> LLM:
    """Windows of 16 positions, norms of q and k, sandwich norms; no tokenizer."""
    return load(TINY / "gemma3.gguf")


@pytest.fixture(scope="session")
def printable() -> dict[int, float]:
    """A logit bias that leaves only printable ASCII, so that every token is one character of the text."""
    return {byte: -math.inf for byte in range(256) if not 0x20 <= byte < 0x7F}
