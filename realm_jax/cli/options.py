"""Owns the options that several commands share: their names, help and limits."""

from pathlib import Path
from typing import Annotated

import typer

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
Implementation = Annotated[
    str | None,
    typer.Option(help="Backend, such as xla; default: the fastest this machine has.", show_default=False),
]
