"""The accelerators that programs are compiled for without owning one; must be asked before jax is imported."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

DESCRIPTIONS = Path(__file__).parents[1] / "data" / "aot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for: `topology` as its plug-in names it, `backend` as pallas_kernels names its own.

    `bandwidth` in bytes a second is the data sheet's; `issue` how many instructions of single threads a GPU starts in a
    second: 32 a cycle in each of the four parts of each multiprocessor, at the usual clock under load.
    """

    name: str
    platform: Literal["cuda", "tpu"]
    backend: Literal["triton", "tpu"]
    topology: str
    bandwidth: float
    issue: float = 0.0
    accelerator_type: str = ""


_H100 = Target(
    name="h100", platform="cuda", backend="triton", topology="1x1x1", bandwidth=3.35e12, issue=132 * 4 * 32 * 1.755e9
)
_A100 = Target(
    name="a100", platform="cuda", backend="triton", topology="1x1x1", bandwidth=2.04e12, issue=108 * 4 * 32 * 1.41e9
)
_V5E = Target(
    name="v5e",
    platform="tpu",
    backend="tpu",
    topology="v5e:2x2",
    bandwidth=8.19e11,
    accelerator_type="v5litepod-4",
)
_V6E = Target(
    name="v6e", platform="tpu", backend="tpu", topology="v6e:2x2", bandwidth=1.64e12, accelerator_type="v6e-4"
)
TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in (_H100, _A100, _V5E, _V6E)})


def prepare(target: Target, dump: Path) -> None:
    """Set the environment that the plug-ins read on import; they leave their dumps in the folder `dump`."""
    os.environ.update(JAX_PLATFORMS="cpu")
    if target.platform == "cuda":
        flags = (f"--xla_dump_to={dump}", os.environ.get("XLA_FLAGS", ""))
        os.environ.update(XLA_FLAGS=" ".join(flags).strip(), MOSAIC_GPU_DUMP_TO=str(dump))
        return
    os.environ.update(
        # Nothing runs on a device, so that two compilers may work at a time.
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=target.accelerator_type,
        TPU_WORKER_HOSTNAMES="localhost",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
    )


def empty(dump: Path) -> None:
    """Drop what a compilation left in its dump: a target's programs take gigabytes together."""
    for path in dump.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def device_mesh(target: Target) -> Any:
    """A mesh of one device of the target."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    if target.platform == "cuda":
        description = (DESCRIPTIONS / f"{target.name}.txtpb").read_text()
        topology = topologies.get_topology_desc(platform="cuda", topology=target.topology, target_config=description)
    else:
        topology = topologies.get_topology_desc(target.topology, "tpu")
    return Mesh(np.array(topology.devices[:1]), ("device",))
