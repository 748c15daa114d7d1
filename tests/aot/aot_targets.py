"""What these programs ask of the plug-ins besides: dumps of what they compile. Must be set before jax is imported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from realm_jax.plan.devices import Device


def prepare(device: Device, dump: Path | None = None) -> None:
    """Set the environment that the plug-ins read on import; they leave their dumps in the folder `dump`, if given."""
    os.environ.update(device.environment())
    if dump is None:
        return
    if device.platform == "cuda":
        flags = (f"--xla_dump_to={dump}", os.environ.get("XLA_FLAGS", ""))
        os.environ.update(XLA_FLAGS=" ".join(flags).strip(), MOSAIC_GPU_DUMP_TO=str(dump))
    else:
        os.environ.update(LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true")


def empty(dump: Path) -> None:
    """Drop what a compilation left in its dump: a target's programs take gigabytes together."""
    for path in dump.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
