"""Records the tiny architecture oracles: transformers models, converted by llama.cpp, with their logits.

It needs torch and transformers, which the test path never installs: `tests/oracles/record.sh` makes the
environment, fetches llama.cpp's converter and calls this file. The same versions give the same bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from families_experts import EXPERTS
from families_gemma import GEMMA
from families_llama import LLAMA_LINE
from family import Family
from mxfp4 import pack_experts
from tiny_model import ablated_logits, build, double_precision, logits, prompts, router_margin

_TINY = Path(__file__).parent.parent / "data" / "tiny"
# A comparison passes below 2e-4 of the largest logit: a feature whose loss changes less than ten times that is not
# proven by this model.
_LEAST_EFFECT = 2e-3
# A tenth of that tolerance: what is left of it belongs to the implementation under test.
_LARGEST_ERROR = 2e-5
# Router logits are of order one and float32 moves them by 1e-6: this keeps the choice of experts out of reach.
_LEAST_ROUTER_MARGIN = 1e-3


def main() -> None:
    """Record the families named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path, help="unpacked llama.cpp source tree")
    parser.add_argument("families", nargs="*", help="names to record; default: all")
    parser.add_argument("--out", type=Path, default=_TINY)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    index = arguments.out / "index.json"
    if not arguments.families:
        index.unlink(missing_ok=True)
    for family in (*LLAMA_LINE, *GEMMA, *EXPERTS):
        if not arguments.families or family.name in arguments.families:
            entry = record(family, arguments.llama_cpp, arguments.out)
            _update_index(index, entry)
            _report(entry)


def record(family: Family, llama_cpp: Path, out: Path) -> dict[str, Any]:
    """Write NAME.gguf and NAME.npz, and return the entry of the index.

    The logits are computed in float64 and stored as float32. `oracle_error` is how far float32 is from them and
    `effects` how far the loss of each feature takes them, both as fractions of `max_abs_logit`.
    """
    path = out / f"{family.name}.gguf"
    _write_gguf(family, llama_cpp, path)
    ids = prompts(family)
    with double_precision():
        exact = _all_logits(family, ids)
        _check_router(family, ids)
    scale = max(float(np.abs(values).max()) for values in exact.values())
    arrays = {f"{name}.ids": tokens.numpy().astype(np.int32) for name, tokens in ids.items()}
    arrays |= {f"{name}.logits": values.astype(np.float32) for name, values in exact.items()}
    np.savez(out / f"{family.name}.npz", **arrays)
    return {
        "name": family.name,
        "architecture": gguf.GGUFReader(path).fields["general.architecture"].contents(),
        "transformers": family.model_type,
        "prompt_lengths": {name: len(tokens) for name, tokens in ids.items()},
        "max_abs_logit": _rounded(scale),
        "oracle_error": _oracle_error(family, exact, scale),
        "effects": _effects(family, exact, scale),
    }


def _all_logits(family: Family, ids: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    tiny = build(family)
    return {name: logits(tiny, tokens) for name, tokens in ids.items()}


def _check_router(family: Family, ids: dict[str, torch.Tensor]) -> None:
    tiny = build(family)
    for tokens in ids.values():
        margin = router_margin(tiny, tokens)
        if margin is not None and margin < _LEAST_ROUTER_MARGIN:
            raise ValueError(
                f"router logits must differ by {_LEAST_ROUTER_MARGIN}, {family.name} has {margin}: change its seed"
            )


def _oracle_error(family: Family, exact: dict[str, np.ndarray], scale: float) -> float:
    single = _all_logits(family, prompts(family))
    error = max(_distance(single[name], exact[name]) for name in exact) / scale
    if error > _LARGEST_ERROR:
        raise ValueError(f"float32 must give float64's logits to {_LARGEST_ERROR}, {family.name} differs by {error}")
    return _rounded(error)


def _write_gguf(family: Family, llama_cpp: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / family.name
        tiny = build(family)
        tiny.model.save_pretrained(source)
        if tiny.packed:
            pack_experts(source, tiny.packed)
        # Gemma's conversion counts the tokens of this file, whatever they are.
        vocab = {f"token{i}": i for i in range(family.config["vocab_size"])}
        (source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        converter = Path(__file__).with_name("converter.py")
        done = subprocess.run(
            [sys.executable, converter, llama_cpp, source, "--outtype", "f32", "--outfile", path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"llama.cpp's converter must succeed on {family.name}, it said:\n{done.stderr}")


def _effects(family: Family, exact: dict[str, np.ndarray], scale: float) -> dict[str, float]:
    """How far the logits move, as a fraction of the largest, when a feature is switched off."""
    effects = {}
    for feature, ablation in family.ablations.items():
        effect = _distance(ablated_logits(family, ablation), exact[ablation.prompt]) / scale
        if effect < _LEAST_EFFECT:
            raise ValueError(
                f"a feature must move the logits by {_LEAST_EFFECT}, {feature} of {family.name} moves them by {effect}"
            )
        effects[feature] = _rounded(effect)
    return effects


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _update_index(path: Path, entry: dict[str, Any]) -> None:
    index = json.loads(path.read_text()) if path.exists() else {"models": []}
    index["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    models = {model["name"]: model for model in index["models"]} | {entry["name"]: entry}
    index["models"] = [models[name] for name in sorted(models)]
    path.write_text(json.dumps(index, indent=2) + "\n")


def _report(entry: dict[str, Any]) -> None:
    print(f"{entry['name']}: max |logit| {entry['max_abs_logit']}, oracle error {entry['oracle_error']}")
    for feature, effect in entry["effects"].items():
        print(f"  without {feature}: {effect}")


if __name__ == "__main__":
    main()
