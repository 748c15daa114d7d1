"""Metal where its plug-in or its device is not: what is refused, and with which words."""

import sys
from pathlib import Path

import pytest

from realm_jax import gguf, models
from realm_jax.ops import IMPLEMENTATIONS, choose_implementation, fastest_implementation, mlx
from realm_jax.ops.backends import require_device, require_split

TINY = Path(__file__).parents[1] / "data" / "tiny" / "llama.gguf"

without_plugin = pytest.mark.skipif(mlx.why_unavailable() is None, reason="the plug-in is here")


@without_plugin
def test_a_missing_plugin_is_named_when_it_is_asked_for() -> None:
    assert "mps" in IMPLEMENTATIONS
    with pytest.raises(
        RuntimeError, match=r"'mps' cannot be used: the plug-in jax-mps .*pip install 'realm-jax\[metal\]'"
    ):
        choose_implementation("mps")
    with pytest.raises(RuntimeError, match="'mps' cannot be used: the plug-in jax-mps is not installed"):
        models.build(gguf.open(TINY), implementation="mps", abstract=True)
    assert not any(name.startswith("jax_plugins.mps") for name in sys.modules)


def test_another_device_or_a_mesh_is_refused() -> None:
    assert fastest_implementation() != "mps"
    with pytest.raises(
        RuntimeError, match="'mps' needs an Apple GPU, but JAX's default device is of platform 'cpu'; use"
    ):
        require_device("mps")
    with pytest.raises(ValueError, match="implementation on a mesh must be one for several devices, got 'mps'"):
        require_split("mps")
