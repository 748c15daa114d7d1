"""Times torch's scaled_dot_product_attention in a process of its own: shapes in on stdin, a line of JSON out."""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

_CALLS, _SAMPLES, _COPIED_BYTES = 20, 7, 2**28


def main() -> None:
    """Time each shape; without torch, say so."""
    given = json.load(sys.stdin)
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        print(json.dumps({"failure": "torch is not installed"}))
        return
    times = {shape["name"]: _timed(torch, given["device"], shape) for shape in given["shapes"]}
    print(json.dumps({"version": torch.__version__, "times": times}))


def _timed(torch: Any, device: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a call in each sample; what torch refuses is the result."""
    try:
        return {"seconds": _seconds(torch, device, shape)}
    except RuntimeError as failure:
        return {"failure": " ".join(str(failure).split())[:200]}


def _seconds(torch: Any, device: str, shape: dict[str, Any]) -> list[float]:
    """Calls follow each other over copies of keys and values that no cache holds; on a GPU they are one graph."""
    options = {"device": device, "dtype": torch.bfloat16}
    batch, channels = shape["batch"], shape["head_dim"]
    q = torch.randn(batch, shape["heads"], shape["queries"], channels, **options)
    size = 2 * 2 * batch * shape["kv_heads"] * shape["keys"] * channels
    copies = [
        tuple(torch.randn(batch, shape["kv_heads"], shape["keys"], channels, **options) for _ in range(2))
        for _ in range(max(1, min(_CALLS, -(-_COPIED_BYTES // size))))
    ]

    def calls() -> None:
        for i in range(_CALLS):
            k, v = copies[i % len(copies)]
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=shape["queries"] > 1, enable_gqa=True)

    if device == "cpu":
        return [_clocked(calls) / _CALLS for _ in range(_SAMPLES)]
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    replay()
    return [_clocked(replay) / _CALLS for _ in range(_SAMPLES)]


def _clocked(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
