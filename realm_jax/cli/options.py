"""Owns the options that several commands share: their names, help and limits."""

import re
from pathlib import Path
from typing import Annotated

import typer

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
    """Read a size such as 2GiB, 1.5GB or 500000000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"a size must be a number of bytes, or one with KiB, MiB, GiB or GB, got {text!r}")
    return int(float(found[1]) * unit)


MODEL_HELP = (
    "A .gguf file, hf:owner/repo/file.gguf, hf:owner/repo:Q4_K_M, or a name: smollm2, gemma3-270m (Gemma terms)."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        envvar="REALM_CACHE_DIR",
        file_okay=False,
        help="Keep downloads and compiled programs here; default: realm-jax in the platform's cache folder, and the "
        "Hugging Face hub's own cache for hf: models.",
        show_default=False,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", envvar="REALM_OFFLINE", help="Never touch the network.")]
PromptFile = Annotated[
    str | None,
    typer.Option("--file", "-f", metavar="FILE", help="Read the text from a file, or from stdin with -."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Compute on this many CPUs: the process is bound to them before JAX starts its threads, one for each. "
        "Linux only; default: all CPUs the process may use.",
        show_default=False,
    ),
]
DefaultModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest sequence, prompt and text together; default: the trained context, or less if memory ends first.",
        show_default=False,
    ),
]
Dtype = Annotated[str, typer.Option(help="Activations: auto, float32 or bfloat16.")]
KVCacheDtype = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        help="Keys and values: float32, float16, bfloat16, q8_0 (8 bits), or auto.",
    ),
]
Implementation = Annotated[
    str | None,
    typer.Option(help="Backend, such as xla; default: the fastest this machine has.", show_default=False),
]
MaxWeightMemory = Annotated[
    int | None,
    typer.Option(
        parser=byte_count,
        metavar="SIZE",
        help="For models larger than memory, or an accelerator's: keep at most this much of the weights there, such as "
        "2GiB, and read the others anew for every token; default: all of them.",
        show_default=False,
    ),
]
