"""Has a model's steps compiled in a process of its own, with the plug-ins of the device, and reads what they take."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from realm_jax.plan.devices import Device
from realm_jax.plan.request import PlanRequest

COMPILE_SECONDS = 40.0
"""How long is compiled at most; a large model's whole steps may take longer, and are left out then."""

_OTHERS = ("JAX_", "XLA_", "TPU_", "LIBTPU_", "MOSAIC_", "PJRT_", "CUDA_VISIBLE_DEVICES")
_PLUGINS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cuda": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "tpu": ("libtpu",)}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A step as it was compiled, on one device: with `layers` of the model, all of them or one of each form.

    The fields that begin with `outside` are those of the program without any layer; None where all were compiled.
    """

    step: str
    layers: Sequence[int]
    seconds: float
    argument_bytes: int
    aliased_bytes: int
    output_bytes: int
    temporary_bytes: int
    custom_calls: Mapping[str, int]
    kernels: int
    bytes_moved: int
    bytes_moved_by: Mapping[str, int]
    unknown_loops: int
    outside_argument_bytes: int | None = None
    outside_bytes_moved: int | None = None

    @property
    def whole(self) -> bool:
        """Whether all layers were compiled."""
        return self.outside_bytes_moved is None

    def all_bytes_moved(self, layer_bytes: Sequence[float]) -> int:
        """The bytes that the step with all layers moves; those not compiled in proportion to `layer_bytes`."""
        return self._scaled(self.bytes_moved, self.outside_bytes_moved, layer_bytes)

    def all_argument_bytes(self, layer_bytes: Sequence[float]) -> int:
        """The weights and caches of all layers as the device lays them out, in the same way."""
        return self._scaled(self.argument_bytes, self.outside_argument_bytes, layer_bytes)

    def _scaled(self, some: int, outside: int | None, layer_bytes: Sequence[float]) -> int:
        if outside is None:
            return some
        return round(outside + (some - outside) * sum(layer_bytes) / sum(layer_bytes[i] for i in self.layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """The steps that were compiled, by name, or why they were not; both where the compiler gave up in between."""

    steps: Mapping[str, CompiledStep]
    failure: str = ""


def why_not(device: Device) -> str:
    """What is missing to compile for a device, and the remedy; empty where nothing is."""
    if any(_installed(name) for name in _PLUGINS[device.platform]):
        return ""
    missing = "jax-cuda12-plugin" if device.platform == "cuda" else "libtpu"
    remedy = "install them with pip install 'realm-jax[aot]'"
    if sys.version_info >= (3, 12):
        remedy = "they are pinned for Python 3.11: in an environment of it, " + remedy
    return f"{missing} is not installed; {remedy}"


def compile_steps(
    path: str, request: PlanRequest, environment: Mapping[str, str], *, seconds: float = COMPILE_SECONDS
) -> Compilation:
    """Compile the decode and the prefill step of a file's model.

    `environment` is the caller's; variables of it that speak to jax and its plug-ins are replaced by the device's.
    """
    target = request.device_target
    kept = {name: value for name, value in environment.items() if not name.startswith(_OTHERS)}
    given = {"path": path, "request": request.as_json(), "seconds": 0.7 * seconds}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "realm_jax.plan.worker"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env={**kept, **target.device.environment(request.chips)},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        steps = _steps(output.decode() if isinstance(output, bytes) else output)
        return Compilation(steps=steps, failure="" if len(steps) == 2 else f"it took longer than {seconds:.0f} s")
    steps = _steps(done.stdout)
    return Compilation(steps=steps, failure="" if not done.returncode else _reason(done.stderr, done.returncode))


def _steps(output: str) -> dict[str, CompiledStep]:
    """The last row of each step; a line that was cut is none."""
    rows = (json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}"))
    return {row["step"]: CompiledStep(**row) for row in rows}


def _reason(errors: str, code: int) -> str:
    """The last line that a failed process wrote, in one sentence's length."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"the compiler ended with code {code}"


def _installed(name: str) -> bool:
    top, _, _ = name.partition(".")
    return importlib.util.find_spec(top) is not None and importlib.util.find_spec(name) is not None
