"""Shards: activations of any number of prompts on disk, written piece by piece so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the names of narrow floats
import numpy as np

_INDEX = "index.json"
_FORMAT = 1

Capture = Callable[[Sequence[int]], list[dict[str, np.ndarray]]]
"""Computes the activations `[rows, ...]` by point name of the prompts of these numbers."""


class ActivationShards(Sequence[dict[str, np.ndarray]]):
    """A folder of captured activations; item i has those of prompt i, `[positions, ...]` by point name, memory-mapped.

    `index.json` lists the shards: for each the numbers of its first prompt and of the one after its last, the number of
    positions of each prompt, and for each point a file in numpy's format, `[all positions of the shard, ...]`, with
    its dtype. What numpy cannot name (bfloat16) is stored as unsigned integers of its width. Columns of attention
    patterns beyond a prompt's own are zero.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder that `LLM.capture_to` has written, complete or not."""
        self.folder = Path(folder)
        self.index: dict[str, Any] = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The entries of the index."""
        return self.index["shards"]

    @property
    def complete(self) -> bool:
        """Whether every prompt has been captured."""
        return len(self) == self.index["job"]["num_prompts"]

    def __len__(self) -> int:
        return self.shards[-1]["stop"] if self.shards else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        wanted = number + len(self) if number < 0 else number
        if not 0 <= wanted < len(self):
            raise IndexError(f"a prompt's number must lie in [0, {len(self)}), got {number}")
        shard = next(shard for shard in self.shards if wanted < shard["stop"])
        place = wanted - shard["start"]
        first = sum(shard["lengths"][:place])
        return {name: array[first : first + shard["lengths"][place]] for name, array in self._arrays(shard)}

    def arrays(self, point: str) -> Iterator[np.ndarray]:
        """The whole array of each shard at one point, in order."""
        for shard in self.shards:
            yield dict(self._arrays(shard))[point]

    def _arrays(self, shard: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        for name, entry in shard["points"].items():
            yield name, np.load(self.folder / entry["file"], mmap_mode="r").view(np.dtype(entry["dtype"]))


def write_shards(
    folder: str | Path,
    token_ids: Sequence[Sequence[int]],
    capture: Capture,
    *,
    job: dict[str, Any],
    shard_prompts: int,
    progress: Callable[[int], object],
) -> ActivationShards:
    """Capture what the folder lacks, `shard_prompts` prompts at a time; `progress` is told how many were there.

    `job` says what is captured of what. A shard is there once the index names it, and the index is replaced in one
    piece: a run that is killed loses the shard that it was at. ValueError where the folder has another job's shards.
    """
    if shard_prompts < 1:
        raise ValueError(f"shard_prompts must be at least 1, got {shard_prompts}")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    prompts = hashlib.sha256(json.dumps([list(ids) for ids in token_ids]).encode()).hexdigest()
    job = {**job, "num_prompts": len(token_ids), "prompts": prompts, "shard_prompts": shard_prompts}
    index = _begun(target, job)
    starts = range(0, len(token_ids), shard_prompts)
    for start in starts[len(index["shards"]) :]:
        stop = min(start + shard_prompts, len(token_ids))
        index["shards"].append(_write_shard(target, start, capture(range(start, stop))))
        _replace(target / _INDEX, json.dumps(index).encode())
        progress(stop - start)
    return ActivationShards(target)


def _begun(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    if not (folder / _INDEX).exists():
        index = {"format": _FORMAT, "job": job, "shards": []}
        _replace(folder / _INDEX, json.dumps(index).encode())
        return index
    index = ActivationShards(folder).index
    differing = [name for name in job if index.get("job", {}).get(name) != job[name]]
    if index.get("format") != _FORMAT or differing:
        raise ValueError(f"{folder} has shards of another job (other {', '.join(differing)}); choose another folder")
    return index


def _write_shard(folder: Path, start: int, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    points = {}
    for name, first in parts[0].items():
        arrays = [part[name] for part in parts]
        file = f"{start:08d}.{name}.npy"
        _replace(folder / file, _join(arrays))
        points[name] = {"file": file, "dtype": first.dtype.name}
    lengths = [len(next(iter(part.values()))) for part in parts]
    return {"start": start, "stop": start + len(parts), "lengths": lengths, "points": points}


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all arrays, their other axes padded with zeros to the largest."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    joined = np.zeros((sum(map(len, arrays)), *shape), arrays[0].dtype)
    at = 0
    for array in arrays:
        joined[(slice(at, at + len(array)), *map(slice, array.shape[1:]))] = array
        at += len(array)
    return joined.view(f"u{joined.itemsize}") if joined.dtype.kind == "V" else joined


def _replace(path: Path, content: bytes | np.ndarray) -> None:
    """Put a file in place in one piece."""
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
