"""Owns getting a model ready to compute: threads, file, compiled programs, weights."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realm_jax.cli.console import status
from realm_jax.cli.model_file import locate_model
from realm_jax.cli.threads import limit_threads

if TYPE_CHECKING:
    from realm_jax import LLM


def load(
    model: str, *, threads: int | None, cache_dir: Path | None, offline: bool, **settings: Any
) -> tuple["LLM", float]:
    """Return the model and the seconds it took from its file to being ready, imports included.

    Args:
        model: what the user calls it.
        threads: CPUs to compute on, None for all.
        cache_dir: for downloads and compiled programs, None for the default.
        offline: never touch the network.
        settings: what `realm_jax.LLM` takes.
    """
    limit_threads(threads)
    path = locate_model(model, cache_dir=cache_dir, offline=offline)
    start = time.monotonic()
    with status(f"Loading {path.name} ..."):
        from realm_jax import LLM

        llm = LLM(path, quiet=True, cache_dir=cache_dir, **settings)
    if settings.get("max_model_len") is None and llm.max_model_len < llm.config.context_length:
        note = f"memory allows {llm.max_model_len} of the {llm.config.context_length} tokens of trained context"
        print(f"realm: {note}", file=sys.stderr)
    return llm, time.monotonic() - start
