"""A process of its own that generates with a window for weights, and prints how much memory it held meanwhile."""

import argparse
import ctypes
import gc
import json
import threading
import time
from pathlib import Path

import jax

from realm_jax import LLM, SamplingParams

TOKENS, ROUNDS = {"cpu": 25, "xla": 10}, 3  # of each round; XLA's products take long


def resident() -> dict[str, int]:
    """Bytes of memory that this process holds: its own (anonymous), and pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def live_bytes() -> int:
    """Bytes of all arrays of JAX's that something still refers to."""
    return sum(array.nbytes for array in jax.live_arrays())


class Watch:
    """Looks at the memory every two milliseconds, and keeps the most that it saw."""

    def __init__(self) -> None:
        self.most = {"RssAnon": 0, "RssFile": 0, "both": 0}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.002):
            now = resident()
            now["both"] = sum(now.values())
            self.most = {name: max(most, now[name]) for name, most in self.most.items()}

    def end(self) -> dict[str, int]:
        self._end.set()
        self._thread.join()
        return self.most


def main() -> None:
    """Load, generate once to compile, then watch some rounds of decoding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("implementation")
    parser.add_argument("max_weight_memory", type=int)
    given = parser.parse_args()
    bounded = {"max_weight_memory": given.max_weight_memory} if given.max_weight_memory else {}
    llm = LLM(
        given.model, implementation=given.implementation, max_model_len=128, max_num_seqs=1, quiet=True, **bounded
    )
    params = SamplingParams(temperature=0, max_tokens=TOKENS[given.implementation], ignore_eos=True)

    def decode() -> list[int]:
        output = llm.generate({"prompt_token_ids": [1, 2, 3]}, params, use_tqdm=False)[0]
        return list(output.outputs[0].token_ids)

    def kept() -> int:
        # What was freed, by compiling or by the round before, is nobody's, though the allocator may still hold it.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return sum(resident().values())

    tokens = decode()
    peaks, rests, live, start = [], [kept()], [live_bytes()], time.perf_counter()
    for _ in range(ROUNDS):
        watch = Watch()
        assert decode() == tokens
        peaks.append(watch.end())
        rests.append(kept())
        live.append(live_bytes())
    seconds = time.perf_counter() - start
    cache = sum(layer.nbytes for layer in llm.runner.cache)
    print(
        json.dumps({"tokens": tokens, "peaks": peaks, "rests": rests, "live": live, "cache": cache, "seconds": seconds})
    )


if __name__ == "__main__":
    main()
