"""Owns `realm inspect`: what a GGUF file holds and what running it takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm_jax.cli import options
from realm_jax.cli.console import human_bytes, print_json, print_table
from realm_jax.cli.model_file import open_model

if TYPE_CHECKING:
    from realm_jax.cli.memory import KVCacheNeed
    from realm_jax.gguf import GGUFFile

_SHOWN = 6


def inspect(
    model: options.Model,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show arrays and long texts whole.")] = False,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Show what a model file holds.

    Its metadata, its tensors by type, and the memory for weights and for the KV cache by context.
    """
    from realm_jax.cli.memory import kv_cache_need

    with open_model(model, cache_dir=cache_dir, offline=offline) as file:
        kv = kv_cache_need(file)
        if json:
            print_json(_as_json(file, kv, full))
        else:
            _print_report(file, tensors, full)
            _print_memory(file, kv)


def types_of(file: "GGUFFile") -> list[dict[str, Any]]:
    """Return for each tensor type its tensors, weights and bytes, most bytes first."""
    rows: dict[str, dict[str, Any]] = {}
    for tensor in file.tensors.values():
        row = rows.setdefault(tensor.ggml_type.name, {"type": tensor.ggml_type.name, "tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += tensor.nbytes
    return sorted(rows.values(), key=lambda row: -row["bytes"])


def _as_json(file: "GGUFFile", kv: "KVCacheNeed | None", full: bool) -> dict[str, Any]:
    return {
        "paths": [str(path) for path in file.paths],
        "version": file.version,
        "alignment": file.alignment,
        "architecture": _valid(file.architecture),
        "metadata": {_valid(key): _shown(value, full) for key, value in file.metadata.items()},
        "types": types_of(file),
        "tensors": [
            {"name": _valid(t.name), "type": t.ggml_type.name, "shape": list(t.shape), "bytes": t.nbytes}
            for t in file.tensors.values()
        ],
        "memory": {"weights": _weight_bytes(file), "kv_cache": None if kv is None else _kv_as_json(kv)},
    }


def _kv_as_json(kv: "KVCacheNeed") -> dict[str, Any]:
    return {
        "values_per_token": kv.values_per_token,
        "sliding_window": kv.sliding_window,
        "contexts": [
            {"context": context, "float32": kv.bytes(context, 4), "bfloat16": kv.bytes(context, 2)}
            for context in kv.contexts()
        ],
    }


def _weight_bytes(file: "GGUFFile") -> int:
    return sum(tensor.nbytes for tensor in file.tensors.values())


def _print_report(file: "GGUFFile", tensors: bool, full: bool) -> None:
    for path in file.paths:
        print(f"{path}  (GGUF version {file.version}, {human_bytes(path.stat().st_size)})")
    print()
    print_table(("metadata", "value"), [(_valid(key), _line(_shown(v, full))) for key, v in file.metadata.items()])
    print()
    rows = [(r["type"], r["tensors"], human_bytes(r["bytes"])) for r in types_of(file)]
    print_table(("type", "tensors", "size"), [*rows, ("all", len(file.tensors), human_bytes(_weight_bytes(file)))])
    if tensors:
        print()
        rows = [(_valid(t.name), t.ggml_type.name, str(t.shape), t.nbytes) for t in file.tensors.values()]
        print_table(("tensor", "type", "shape", "bytes"), rows)


def _print_memory(file: "GGUFFile", kv: "KVCacheNeed | None") -> None:
    print(f"\nMemory: weights {human_bytes(_weight_bytes(file))}, as stored")
    if kv is None:
        print("KV cache: unknown, the metadata does not describe its attention")
        return
    bound = "" if kv.sliding_window is None else f", at most: some layers keep only {kv.sliding_window} tokens"
    print(f"KV cache for one sequence{bound}:")
    rows = [(c, human_bytes(kv.bytes(c, 4)), human_bytes(kv.bytes(c, 2))) for c in kv.contexts()]
    print_table(("context", "float32", "bfloat16"), rows)


def _shown(value: Any, full: bool) -> Any:
    """Return a metadata value as plain Python; long arrays become their length and first items unless full."""
    if isinstance(value, str):
        text = _valid(value)
        return text if full or len(text) <= 400 else {"characters": len(text), "first": text[:200]}
    if not isinstance(value, Sequence) and not hasattr(value, "tolist"):
        return value
    if full or len(value) <= 2 * _SHOWN:
        return [_shown(item, full) for item in _items(value)]
    return {"length": len(value), "first": [_shown(item, full) for item in _items(value[:_SHOWN])]}


def _items(values: Any) -> Sequence[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _line(shown: Any) -> str:
    """Write a shown value in one line."""
    if isinstance(shown, Mapping):
        if "length" in shown:
            return f"{shown['length']} items: {', '.join(map(repr, shown['first']))}, ..."
        return f"{shown['characters']} characters: {shown['first']!r}..."
    return repr(shown) if isinstance(shown, str) and not shown.isprintable() else str(shown)


def _valid(text: str) -> str:
    """Show bytes of a file's string that are no UTF-8 as replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
