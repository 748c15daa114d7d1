"""Owns `realm generate`: a text that continues a prompt, or answers it."""

import secrets
import sys
from typing import Annotated

import typer

from realm_jax.cli import options
from realm_jax.cli import sampling_options as sampling
from realm_jax.cli.console import print_json
from realm_jax.cli.conversation import chat_prompt
from realm_jax.cli.loading import load
from realm_jax.cli.reply import stream_reply
from realm_jax.cli.text_input import read_text
from realm_jax.sources import DEFAULT_MODEL


def generate(
    model: options.DefaultModel = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt.", show_default=False)] = None,
    file: options.PromptFile = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    system: sampling.System = None,
    max_tokens: sampling.MaxTokens = 128,
    temperature: sampling.Temperature = 0.0,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 1.0,
    min_p: sampling.MinP = 0.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    ignore_eos: sampling.IgnoreEos = False,
    json: options.Json = False,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = "auto",
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    max_weight_memory: options.MaxWeightMemory = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Continue a prompt.

    The text goes to stdout as it is made, its speed to stderr. With --json, one object with text, token_ids,
    prompt_token_ids, finish_reason and timings. A prompt from --file loses one line end at its end.
    """
    if system is not None and not chat:
        raise typer.BadParameter("--system needs --chat")
    text = read_text(prompt, file, argument_name="--prompt")
    if file is not None:
        text = text.removesuffix("\n").removesuffix("\r")
    settings = {"max_num_seqs": 1, "max_model_len": max_model_len, "dtype": dtype, "implementation": implementation}
    settings |= {"kv_cache_dtype": kv_cache_dtype, "max_weight_memory": max_weight_memory}
    llm, load_seconds = load(model, threads=threads, cache_dir=cache_dir, offline=offline, **settings)
    params = sampling.params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=secrets.randbits(32) if seed is None else seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    messages = [{"role": "system", "content": system}] if system else []
    source = chat_prompt(llm, [*messages, {"role": "user", "content": text}]) if chat else text
    reply = stream_reply(llm, source, params, load_seconds=load_seconds, write=None if json else _write)
    if json:
        print_json(reply.as_json())
    else:
        print(flush=True)
        print(reply.summary(), file=sys.stderr)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
