"""A process of two CPU devices in which models run on the second one; it prints what they give, and where they lie."""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from realm_jax import gguf, models
from realm_jax.engine import Engine, EngineConfig, RequestFactory, Runner
from realm_jax.engine.memory import CacheSize
from realm_jax.engine.streaming import StreamingRunner
from realm_jax.ops import fastest_implementation
from realm_jax.sampling import SamplingParams

MODEL = Path(__file__).parents[1] / "data" / "tiny" / "llama.gguf"
SIZE = CacheSize(max_model_len=64, num_blocks=(10,))
OPTIONS: dict[str, Any] = {"block_size": 16, "kv_cache_dtype": "float32"}


def generate(runner: Runner) -> list[int]:
    """Tokens after a prompt, of which the first decode step is compiled on another thread."""
    factory = RequestFactory(None, vocab_size=runner.vocab_size, max_model_len=64, seed=0)
    params = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.0)
    sequence = factory.make({"prompt_token_ids": [9, 4, 7]}, params).sequences[0]
    engine = Engine(runner, EngineConfig(max_num_seqs=1, async_scheduling=False))
    engine.warm_up([sequence])
    engine.add(sequence)
    while engine.has_work:
        engine.step()
    return sequence.output_token_ids


def devices_of(tree: Any) -> list[int]:
    return sorted({device.id for array in jax.tree.leaves(tree) for device in array.devices()})


def report(streams: bool) -> dict[str, Any]:
    """What a model generates, with a window for two of its parts if it `streams`, and the devices it has used."""
    model = models.build(gguf.open(MODEL), implementation=fastest_implementation(), mapped=streams)
    if not streams:
        runner = Runner(model, SIZE, **OPTIONS)
        return {"tokens": generate(runner), "cache": devices_of(runner.cache), "weights": devices_of(runner.leaves)}
    try:
        runner = StreamingRunner(model, SIZE, max_weight_memory=0, **OPTIONS)
    except ValueError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        runner = StreamingRunner(model, SIZE, max_weight_memory=least, **OPTIONS)
    assert runner.window.streamed_bytes
    tokens = generate(runner)
    return {"tokens": tokens, "cache": devices_of(runner.cache), "weights": devices_of(runner.window.enter(0))}


if __name__ == "__main__":
    with jax.default_device(jax.devices()[1]):
        json.dump([report(streams=False), report(streams=True)], sys.stdout)
