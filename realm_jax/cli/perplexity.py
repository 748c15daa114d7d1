"""Owns `realm perplexity`: how well a model predicts a text."""

import math
import time
from typing import Annotated

import typer

from realm_jax.cli import options
from realm_jax.cli.console import print_json
from realm_jax.cli.loading import load
from realm_jax.cli.text_input import read_text


def perplexity(
    model: options.Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text in UTF-8, or - for stdin.", show_default=False)],
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window; default: half of one.", show_default=False)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window; default: --max-model-len.", show_default=False)
    ] = None,
    json: options.Json = False,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = "auto",
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Measure the perplexity of a text, by windows that slide over it.

    Prints the perplexity; with --json, one object with perplexity, logprob, num_tokens, bits_per_byte and seconds.
    """
    text = read_text(None, file, argument_name="FILE")
    settings = {"max_model_len": max_model_len, "dtype": dtype, "implementation": implementation}
    settings["kv_cache_dtype"] = kv_cache_dtype
    llm, _ = load(model, threads=threads, cache_dir=cache_dir, offline=offline, **settings)
    start = time.monotonic()
    found = llm.perplexity(text, stride=stride, max_length=max_length)
    seconds = time.monotonic() - start
    if not json:
        print(f"{found.perplexity:.4f}")
        return
    bits = -found.logprob / len(text.encode()) / math.log(2)
    report = {"perplexity": found.perplexity, "logprob": found.logprob, "num_tokens": found.num_tokens}
    print_json({**report, "bits_per_byte": bits, "seconds": seconds})
