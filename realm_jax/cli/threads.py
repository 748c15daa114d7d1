"""Owns holding a computation to some of the machine's CPUs."""

import contextlib
import os
from pathlib import Path

from realm_jax.cli.errors import CommandError

_TOPOLOGY = Path("/sys/devices/system/cpu")


def available_cpus() -> int:
    """Return how many CPUs this process may use, which is how many threads XLA's CPU backend starts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int | None) -> None:
    """Bind this process to count CPUs, of different cores as far as there are.

    XLA's CPU backend sizes its pool by the process's CPU affinity when it starts and has no other switch, so this
    must come before JAX initialises a backend.

    Args:
        count: number of CPUs, None to leave all.

    Raises:
        CommandError: the system has no CPU affinity, or fewer CPUs.
    """
    if count is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise CommandError("--threads needs a system with CPU affinity, such as Linux; leave it out to use all CPUs")
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_rank_in_core(cpu), cpu))
    if count > len(cpus):
        raise CommandError(f"--threads must be at most {len(cpus)}, the CPUs this process may use, got {count}")
    os.sched_setaffinity(0, cpus[:count])


def _rank_in_core(cpu: int) -> int:
    """Return 0 for a core's first hardware thread, 1 for its second; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        text = (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
        siblings = [n for part in text.strip().split(",") for n in _span(part)]
        return siblings.index(cpu)
    return 0


def _span(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
