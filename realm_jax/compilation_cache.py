"""Owns keeping compiled programs on disk from one process to the next."""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from realm_jax.host_cpu import HostCPU, host_cpu

_USERS_OPTIONS = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")


def compilation_cache_folder(cache_dir: Path, cpu: HostCPU | None = None) -> Path:
    """Return the folder for this machine's programs, ``cache_dir/xla/<machine>-<hash>``.

    XLA compiles for the very CPU it runs on, and a home folder may be shared by machines that differ: the hash covers
    the CPU's features and the versions of jax and jaxlib.
    """
    cpu = cpu or host_cpu()
    facts = "\n".join((version("jax"), version("jaxlib"), cpu.machine, *cpu.features))
    return cache_dir / "xla" / f"{cpu.machine}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def enable_compilation_cache(cache_dir: str | Path) -> Path | None:
    """Let JAX keep every compiled program below cache_dir and return the folder in use.

    A folder that the user has set (``jax_compilation_cache_dir``) is left alone, thresholds included, and returned.

    Returns:
        None when nothing is kept: the user has switched the cache off, or the folder cannot be written, which costs
        time and is no error.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    enabled, chosen = (getattr(jax.config, name) for name in _USERS_OPTIONS)
    if not enabled:
        return None
    if chosen:
        return Path(chosen)
    folder = compilation_cache_folder(Path(cache_dir))
    if not _writable(folder):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # a step compiles in under the second that JAX asks for by default, and there are dozens of them
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # what was compiled before has made JAX settle on having no cache
    compilation_cache.reset_cache()
    return folder


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
