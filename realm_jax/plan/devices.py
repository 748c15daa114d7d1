"""The accelerators that are planned and compiled for without owning one: their makers' figures. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

_FOLDER = Path(__file__).parent
_TPU_SLICES: Mapping[int, str] = MappingProxyType({1: "2x2", 4: "2x2", 8: "2x4"})  # one chip is one of four
_MOST_GPUS = 8  # that one machine joins by NVLink


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One chip, as its maker describes it in `source`.

    `memory` in bytes, `bandwidth` in bytes a second, `bfloat16` and `int8` in dense operations a second. `backend` is
    the name of its kernels in pallas_kernels. `issue`: how many instructions of single threads a GPU starts in a
    second, 32 a cycle in each of the four parts of each multiprocessor, at the usual clock under load. `clock`: a TPU's
    cycles a second, each of which starts a bundle of instructions; 0 where it does not follow from what is published.
    """

    name: str
    title: str
    platform: Literal["cuda", "tpu"]
    backend: Literal["triton", "tpu"]
    memory: float
    bandwidth: float
    bfloat16: float
    int8: float
    source: str
    issue: float = 0.0
    clock: float = 0.0
    accelerator_type: str = ""

    @property
    def description(self) -> str:
        """What XLA compiles for, of a GPU: its target config as text."""
        return (_FOLDER / f"{self.name}.txtpb").read_text()

    def topology(self, chips: int) -> str:
        """The name of the smallest group of at least so many chips, as the device's plug-in has it."""
        if self.platform == "cuda":
            return f"1x1x{chips}"
        return f"{self.name}:{next(slice_ for size, slice_ in _TPU_SLICES.items() if size >= chips)}"

    def environment(self, chips: int = 1) -> dict[str, str]:
        """The variables that jax and its plug-ins must find when they are imported."""
        if self.platform == "cuda":
            return {"JAX_PLATFORMS": "cpu"}
        return {
            "JAX_PLATFORMS": "cpu",
            # Nothing runs on a device, so that two compilers may work at a time.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"{self.accelerator_type}-{max(4, chips)}",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device(
                name="h100",
                title="NVIDIA H100 SXM",
                platform="cuda",
                backend="triton",
                memory=80e9,
                bandwidth=3.35e12,
                bfloat16=989.4e12,
                int8=1978.9e12,
                source="NVIDIA H100 Tensor Core GPU data sheet, H100 SXM, without sparsity",
                issue=132 * 4 * 32 * 1.755e9,
            ),
            Device(
                name="a100",
                title="NVIDIA A100 SXM 80 GB",
                platform="cuda",
                backend="triton",
                memory=80e9,
                bandwidth=2.039e12,
                bfloat16=312e12,
                int8=624e12,
                source="NVIDIA A100 Tensor Core GPU data sheet, A100 80 GB SXM, without sparsity",
                issue=108 * 4 * 32 * 1.41e9,
            ),
            Device(
                name="v5e",
                title="Google TPU v5e",
                platform="tpu",
                backend="tpu",
                memory=16e9,
                bandwidth=819e9,
                bfloat16=197e12,
                int8=393e12,
                source="Google Cloud, TPU v5e: system architecture (cloud.google.com/tpu/docs/v5e)",
                # Four matrix units of 128 by 128, each of whose cells multiplies and adds once a cycle.
                clock=197e12 / (4 * 128 * 128 * 2),
                accelerator_type="v5litepod",
            ),
            Device(
                name="v6e",
                title="Google TPU v6e",
                platform="tpu",
                backend="tpu",
                memory=32e9,
                bandwidth=1638e9,
                bfloat16=918e12,
                int8=1836e12,
                source="Google Cloud, TPU v6e: system architecture (cloud.google.com/tpu/docs/v6e)",
                accelerator_type="v6e",
            ),
        )
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a user names: a device, how many of its chips there are, and how many a model is split over unless told."""

    name: str
    device: Device
    most: int
    usual: int

    def chips(self, wanted: int | None) -> int:
        """Over how many chips a model is split; ValueError for more than there are."""
        chips = self.usual if wanted is None else wanted
        if not 1 <= chips <= self.most:
            raise ValueError(f"tp must be 1 to {self.most} on {self.name}, got {chips}")
        return chips


def _targets() -> dict[str, Target]:
    found = {}
    for device in DEVICES.values():
        if device.platform == "cuda":
            found[device.name] = Target(name=device.name, device=device, most=_MOST_GPUS, usual=1)
            continue
        for size in _TPU_SLICES:
            name = f"{device.name}-{size}"
            found[name] = Target(name=name, device=device, most=size, usual=size)
    return found


TARGETS: Mapping[str, Target] = MappingProxyType(_targets())
"""By name: `h100` and `a100`, of which one machine has up to eight; slices of a TPU by their chips, as `v5e-8`."""


def target_named(name: str) -> Target:
    """The target of this name; ValueError that lists the known ones."""
    found = TARGETS.get(name.lower())
    if found is None:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    return found
