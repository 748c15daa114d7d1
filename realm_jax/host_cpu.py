"""Owns what this machine's CPU calls itself and which instruction sets it has."""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_FEATURE_KEYS = ("flags", "Features")
_MODEL_KEYS = ("model name", "Model", "Hardware")


@dataclass(frozen=True, kw_only=True)
class HostCPU:
    """A CPU: machine type (``x86_64``), marketing name, and the features as the kernel names them, sorted."""

    machine: str
    name: str
    features: tuple[str, ...]


def host_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> HostCPU:
    """Return this machine's CPU, from Linux's ``/proc/cpuinfo`` or macOS's ``sysctl``.

    Where neither can be read the name is what the platform module knows and the features are empty.
    """
    machine = platform.machine()
    try:
        fields = _fields(cpuinfo.read_text(errors="replace"))
    except OSError:
        fields = _sysctl()
    name = next((fields[key] for key in _MODEL_KEYS if key in fields), platform.processor() or machine)
    features = next((fields[key] for key in _FEATURE_KEYS if key in fields), "")
    return HostCPU(machine=machine, name=name, features=tuple(sorted(set(features.split()))))


def _fields(text: str) -> dict[str, str]:
    """Parse ``key : value`` lines; the first value of a key counts, so the first core speaks for all."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _sysctl() -> dict[str, str]:
    """Ask macOS for the same two fields: on Apple silicon features are switches under ``hw.optional``."""
    try:
        answer = subprocess.run(
            ["sysctl", "machdep.cpu.brand_string", "hw.optional"], capture_output=True, text=True, check=False
        )
    except OSError:
        return {}
    fields = _fields(answer.stdout)
    on = [key.removeprefix("hw.optional.") for key, value in fields.items() if key[:3] == "hw." and value == "1"]
    return {"model name": fields.get("machdep.cpu.brand_string", platform.machine()), "flags": " ".join(on)}
