"""How far a run is from the exact one, beside what was recorded of llama.cpp's own quantised run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.environment import ROOT
from realm_jax import LLM
from realm_jax.engine import scoring

_GOLDEN = ROOT / "tests" / "data" / "golden"
_LENGTH = 1280  # holds the longest recorded sequence
_ROWS = 100  # positions whose log-probabilities are held at a time
_NAMES = {"llama": "smollm2-135m-q4_1", "gemma3": "gemma3-270m-q4_k_m"}


def measure(path: Path, *, implementation: str = "cpu", kv_cache_dtype: str = "auto") -> dict[str, Any]:
    """Compare an implementation with `xla` in float32 and with the recorded top 32 log-probabilities.

    Mean Kullback-Leibler divergence of the implementation from `xla` in nats, mean |difference| of the recorded
    log-probabilities, and the share of positions with the recorded best token, over all recorded positions.
    """
    exact = LLM(path, max_model_len=_LENGTH, max_num_seqs=1, dtype="float32", implementation="xla", quiet=True)
    options = {"implementation": implementation, "kv_cache_dtype": kv_cache_dtype}
    llm = LLM(path, max_model_len=_LENGTH, max_num_seqs=1, quiet=True, **options)
    name = _NAMES.get(exact.config.architecture)
    if name is None:
        raise ValueError(
            f"the recordings are of SmolLM2 Q4_1 and Gemma-3-270M Q4_K_M, got {path.name}; name one of them"
        )
    recorded, described = np.load(_GOLDEN / f"{name}.npz"), json.loads((_GOLDEN / f"{name}.json").read_text())
    parts = [part for s in described["sequences"] for part in _positions(exact, llm, recorded, s["name"])]
    divergence, difference, agreement = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return {
        "model": path.name,
        "implementation": implementation,
        "kv_cache": llm.kv_cache_dtype,
        "positions": len(divergence),
        "mean_kl_to_exact": float(divergence.mean()),
        "mean_abs_dlogprob_top32": float(difference.mean()),
        "top1_agreement": float(agreement.mean()),
        "peer": described["llama_cpp_quantised_run"],
    }


def _positions(
    exact: LLM, llm: LLM, recorded: Mapping[str, np.ndarray], name: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    ids = recorded[f"{name}.ids"].tolist()
    wanted, found = (scoring.sequence_logits(one.runner, ids) for one in (exact, llm))
    for at in range(0, len(ids), _ROWS):
        rows = slice(at, at + _ROWS)
        p, q = _log_softmax(wanted[rows]), _log_softmax(found[rows])
        top_ids = recorded[f"{name}.top_ids"][rows]
        difference = np.abs(np.take_along_axis(q, top_ids, axis=-1) - recorded[f"{name}.top_logprobs"][rows])
        yield np.sum(np.exp(p) * (p - q), axis=-1), difference.mean(axis=-1), q.argmax(axis=-1) == top_ids[:, 0]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.sum(np.exp(wide), axis=-1, keepdims=True))


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """The three measures as Markdown, llama.cpp's recorded ones in brackets."""
    measures = ("mean KL", "mean |difference|, top 32", "top-1 agreement")
    columns = ("model", "implementation", "KV cache", "positions", *measures)
    rows = [
        (
            r["model"],
            r["implementation"],
            r["kv_cache"],
            r["positions"],
            f"{r['mean_kl_to_exact']:.5f} ({r['peer']['mean_kl_to_exact']:.5f})",
            f"{r['mean_abs_dlogprob_top32']:.4f} ({r['peer']['mean_abs_dlogprob_top32']:.4f})",
            f"{r['top1_agreement']:.2%} ({r['peer']['top1_agreement']:.2%})",
        )
        for r in results
    ]
    return report.table(columns, rows)


def main() -> None:
    """Print the quality of a run of each model."""
    parser = report.parser("How far a run is from the exact one, llama.cpp's own in brackets.")
    parser.add_argument("--implementation", default="cpu", help="what is compared with xla in float32")
    parser.add_argument("--kv-cache-dtype", default="auto", help="what it keeps keys and values in")
    options = parser.parse_args()
    chosen = {"implementation": options.implementation, "kv_cache_dtype": options.kv_cache_dtype}
    report.run(options, lambda path: [measure(path, **chosen)], tables)


if __name__ == "__main__":
    main()
