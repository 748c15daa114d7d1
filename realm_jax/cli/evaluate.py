"""Owns `realm eval`: lm-evaluation-harness on a GGUF file."""

import importlib.util
import json
import sys
from typing import Annotated

import typer

from realm_jax.cli import options
from realm_jax.cli.errors import CommandError
from realm_jax.cli.model_file import locate_model
from realm_jax.cli.threads import limit_threads
from realm_jax.sources import DEFAULT_MODEL

PASSES_ON = {"ignore_unknown_options": True}


def evaluate(
    tasks: Annotated[str, typer.Option(metavar="TASKS", help="Tasks of the harness, joined by commas.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=options.MODEL_HELP)] = DEFAULT_MODEL,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that are computed together.")] = 16,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = "auto",
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
    passed_on: Annotated[list[str] | None, typer.Argument(metavar="[OPTION OF THE HARNESS]...")] = None,
) -> None:
    """Evaluate a model on tasks of lm-evaluation-harness.

    Options that are not listed here go to the harness as they are: --num_fewshot 5, --limit 100,
    --apply_chat_template, --system_instruction TEXT, --include_path FOLDER, --output_path FOLDER, --log_samples.
    `lm_eval --model realm --model_args pretrained=MODEL` is the same. Needs the extra: pip install 'realm-jax[eval]'.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise CommandError("realm eval needs lm-evaluation-harness; install it with pip install 'realm-jax[eval]'")
    limit_threads(threads)
    path = locate_model(model, cache_dir=cache_dir, offline=offline)
    arguments = {
        "pretrained": str(path),
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "implementation": implementation,
        "cache_dir": None if cache_dir is None else str(cache_dir),
    }
    given = json.dumps({name: value for name, value in arguments.items() if value is not None})
    sys.argv = ["lm_eval", "run", "--model", "realm", "--model_args", given, "--tasks", tasks, *(passed_on or ())]
    from realm_jax.evals.harness import main

    main()
