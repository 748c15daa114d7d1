"""Where figures come from: CPU, instruction sets, devices, versions, and how busy the machine was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REALM = (sys.executable, "-c", "from realm_jax.cli import main; raise SystemExit(main())")
"""The command `realm`, run by this interpreter."""

Environment = Mapping[str, Any]
_REPORTED = ("versions", "cpu", "devices", "backends")


def environment() -> Environment:
    """What `realm doctor` says of this machine, the load on it, its memory, and the time, all as plain values."""
    done = subprocess.run([*REALM, "doctor", "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    facts = json.loads(done.stdout)
    return {
        **{name: facts[name] for name in _REPORTED},
        "load_average": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "revision": _revision(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe(facts: Environment) -> str:
    """The environment in a few lines."""
    cpu, versions = facts["cpu"], facts["versions"]
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(
        (
            f"CPU: {cpu['name']}, {cpu['usable_cpus']} CPUs usable, {facts['memory_bytes'] / 1e9:.0f} GB of memory",
            f"Instruction sets: {', '.join(cpu['instruction_sets']) or 'unknown'}",
            f"Devices: {', '.join(device['kind'] for device in facts['devices'])}",
            f"Versions: {installed}; revision {facts['revision'] or 'unknown'}",
            f"Measured: {facts['time']}, load average {facts['load_average']:.2f} before the first run",
        )
    )


def _revision() -> str | None:
    """The commit of the sources, with a plus sign where they were changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
