"""Makes the platform `mps` known to a JAX that has no Apple GPU, so that programs can be lowered for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import jax

from realm_jax.ops import mlx

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "build" / "jax-mps"
"""Where `make metal` leaves the plug-in's files."""

ENVIRONMENT = ROOT / "build" / "venv-metal"
"""The environment with the release of JAX that the plug-in was made for."""


def register() -> str | None:
    """Register the plug-in's lowerings as its own start-up does on a Mac; otherwise why that is not possible here.

    Its library cannot be loaded here, so JAX must have found its devices before the plug-in's files are on the path.
    """
    jax.devices()
    if mlx.why_unavailable() is None:  # on a Mac, or registered before
        return None
    if jax.version.__version_info__[:2] != (0, 11) or not PLUGIN.is_dir():
        return f"needs jax 0.11 and the plug-in jax-mps in {PLUGIN.relative_to(ROOT)}: make metal"
    sys.path.append(str(PLUGIN))
    importlib.invalidate_caches()
    from jax._src import xla_bridge

    xla_bridge.register_backend_factory("mps", _no_device, fail_quietly=True)
    primitives = importlib.import_module("jax_plugins.mps.ops")
    primitives.register_fused_ops()
    primitives.patch_jax_functions()
    jax.config.update("jax_use_shardy_partitioner", False)
    return None


def _no_device() -> Any:
    raise RuntimeError("the platform mps is known here for lowering alone")
