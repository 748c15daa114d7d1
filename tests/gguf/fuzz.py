"""Mutates GGUF files and opens each one under a memory and a time limit: `python tests/gguf/fuzz.py --help`.

A mutant has to open, and then all it holds has to be readable, or to end in GGUFError. Mutant number i of a seed is
always the same, so a failure is run again with `--first i --mutants 1`.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf_bytes import Image, Tensor, Value, build

from realm_jax.gguf import GGMLType, GGUFError, GGUFFile, StringArray
from realm_jax.gguf import open as open_gguf

EXTRA_BYTES = 64 << 20
SECONDS_PER_MUTANT = 10.0
BIG_BYTES = 32 << 20
BIG_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Case:
    """A well-formed model: one image for each shard, and `size` to which a sparse file is extended."""

    name: str
    images: tuple[Image, ...]
    size: int = 0

    def file_name(self, index: int) -> str:
        """Return the name of shard `index`."""
        return f"{self.name}-{index + 1:05d}-of-{len(self.images):05d}.gguf"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """The bytes of one changed file, what was done, and where the first change lies."""

    data: bytes
    what: str
    position: int


def _metadata() -> list[tuple[str, Value]]:
    return [
        ("general.architecture", ("str", "llama")),
        ("general.alignment", ("u32", 32)),
        ("u8", ("u8", 200)),
        ("i8", ("i8", -3)),
        ("u16", ("u16", 60_000)),
        ("i16", ("i16", -9)),
        ("i32", ("i32", -70_000)),
        ("f32", ("f32", 0.5)),
        ("bool", ("bool", 1)),
        ("u64", ("u64", 2**40)),
        ("i64", ("i64", -(2**40))),
        ("f64", ("f64", 1e300)),
        ("tokens", ("arr", ("str", [f"token {i}" for i in range(40)]))),
        ("scores", ("arr", ("f32", [float(i) for i in range(40)]))),
        ("types", ("arr", ("i32", list(range(40))))),
        ("flags", ("arr", ("bool", [0, 1] * 5))),
        ("doubles", ("arr", ("f64", [1.0, 2.0]))),
        ("nested", ("arr", ("arr", [("i32", [1, 2]), ("str", ["x", "y"]), ("arr", [("u8", [1])])]))),
        ("template", ("str", "text " * 900)),
    ]


def _tensors() -> list[Tensor]:
    kinds = list(GGMLType)
    shapes = [(kind.block_size * 2, *(2, 3)[: index % 3]) for index, kind in enumerate(kinds)]
    return [
        Tensor(f"blk.{kind:d}.weight", dims, kind, bytes(int(np.prod(dims)) // kind.block_size * kind.type_size))
        for kind, dims in zip(kinds, shapes, strict=True)
    ]


def _split(number: int, tensors: list[Tensor]) -> Image:
    values = [("split.no", ("u16", number)), ("split.count", ("u16", 2)), ("split.tensors.count", ("i32", 6))]
    return build([*_metadata()[:3], *values], tensors)


def cases() -> list[Case]:
    """Return the models to mutate; the last one is big and sparse."""
    some = _tensors()[:6]
    small = [("general.architecture", ("str", "llama")), ("tokens", ("arr", ("str", ["a", "bc"])))]
    page = [("general.alignment", ("u32", 4096))]
    return [
        Case("full", (build(_metadata(), _tensors()),)),
        Case("big-endian", (build(_metadata(), some, order=">"),)),
        Case("version-2", (build(_metadata(), some, version=2),)),
        Case("vocabulary", (build(_metadata()),)),
        Case("page", (build(page, some, alignment=4096),)),
        Case("small", (build(small, some[:1]),)),
        Case("tensors", (build([], some),)),
        Case("split", (_split(0, some[:3]), _split(1, some[3:]))),
        Case("sparse", (build([*_metadata(), ("last", ("str", "end"))], some),), BIG_BYTES),
    ]


def _extremes(rng: random.Random, image: Image, size: int, old: int, bits: int) -> int:
    size = max(size, len(image.data))
    powers = [1 << rng.randrange(bits), 1 << bits - 1, (1 << bits) - 1, 1 << max(0, bits - 3)]
    near = [old + rng.choice((-1, 1)), old * 2, old + rng.randrange(64), old ^ 1 << rng.randrange(bits)]
    sizes = [size, size - 1, size - image.header_end, size // 8, size // 4, rng.randrange(size)]
    return rng.choice([*powers, *near, *sizes, 0, 1, rng.randrange(16), -1, -rng.randrange(1 << 20), 1 << 61])


def mutate_fields(rng: random.Random, image: Image, size: int) -> Mutant:
    """Set one to three of the header's numbers (counts, lengths, types, offsets, values) to extreme values."""
    chosen = rng.sample(image.fields, min(rng.choice((1, 1, 2, 3)), len(image.fields)))
    changed, what = image, []
    for field in chosen:
        width = struct.calcsize("<" + field.code)
        order = "little" if image.order == "<" else "big"
        old = int.from_bytes(image.data[field.offset : field.offset + width], order)
        value = _extremes(rng, image, size, old, 8 * width)
        changed = dataclasses.replace(changed, data=changed.patch_field(field, value))
        what.append(f"{field.name} {old} -> {value}")
    return Mutant(changed.data, ", ".join(what), min(field.offset for field in chosen))


def mutate_bytes(rng: random.Random, image: Image, size: int) -> Mutant:
    """Replace one to eight bytes of the header."""
    data = bytearray(image.data)
    places = [rng.randrange(image.header_end) for _ in range(rng.randint(1, 8))]
    for place in places:
        data[place] = rng.choice((0, 255, rng.randrange(256), data[place] ^ 1 << rng.randrange(8)))
    return Mutant(bytes(data), f"bytes at {places}", min(places))


def mutate_pieces(rng: random.Random, image: Image, size: int) -> Mutant:
    """Delete, repeat, insert or move a piece of the header."""
    start = rng.randrange(image.header_end)
    end = min(start + rng.choice((1, 4, 8, rng.randrange(1, 200))), image.header_end)
    other = rng.randrange(image.header_end)
    piece = rng.choice((b"", image.data[start:end] * 2, rng.randbytes(end - start), image.data[other : other + 40]))
    return Mutant(image.data[:start] + piece + image.data[end:], f"{start}:{end} -> {len(piece)} bytes", start)


def mutate_length(rng: random.Random, image: Image, size: int) -> Mutant:
    """Cut the file within its header."""
    length = rng.randrange(1, image.header_end)
    return Mutant(image.data[:length], f"cut to {length} bytes", length)


def mutate_data(rng: random.Random, image: Image, size: int) -> Mutant:
    """Cut, extend or change what follows the header."""
    start = rng.randrange(image.header_end, len(image.data) + 1)
    tail = rng.choice((b"", rng.randbytes(rng.randrange(64)), bytes(5000)))
    return Mutant(image.data[:start] + tail, f"{len(tail)} bytes from {start}", start)


MUTATORS: tuple[tuple[Callable[[random.Random, Image, int], Mutant], float], ...] = (
    (mutate_fields, 0.5),
    (mutate_bytes, 0.2),
    (mutate_pieces, 0.12),
    (mutate_length, 0.08),
    (mutate_data, 0.1),
)


def _walk_value(value: Any) -> None:
    if isinstance(value, np.ndarray):
        value.view(np.uint8).max(initial=0)
    elif isinstance(value, StringArray):
        count = sum(1 for _ in value)
        assert count == len(value)
        assert not count or value[-1] == value[count - 1]
    elif isinstance(value, tuple):
        for item in value:
            _walk_value(item)
    else:
        assert isinstance(value, (bool, int, float, str))


def walk(found: GGUFFile) -> None:
    """Read every value and every byte of every tensor, and check what a caller relies on."""
    for value in found.metadata.values():
        _walk_value(value)
    if found.byte_order == "big":
        return
    for name, tensor in found.tensors.items():
        assert tensor.name == name
        assert all(dim > 0 for dim in tensor.shape)
        weights = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
        assert tensor.data.shape == (weights // tensor.ggml_type.block_size * tensor.ggml_type.type_size,)
        tensor.data.max(initial=0)


class Limits:
    """Bounds what one mutant may use: its file's size + 64 MB of address space (on Linux), and some seconds."""

    def __init__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        self.base = 0
        if sys.platform == "linux":
            self.base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        signal.signal(signal.SIGALRM, self._stop)

    def _stop(self, signum: int, frame: Any) -> None:
        raise TimeoutError(f"a mutant took more than {SECONDS_PER_MUTANT} s")

    @contextlib.contextmanager
    def around(self, file_bytes: int) -> Iterator[None]:
        """Hold the limits within the block."""
        soft = self.base + file_bytes + EXTRA_BYTES if self.base else self.before[0]
        resource.setrlimit(resource.RLIMIT_AS, (soft, self.before[1]))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_MUTANT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, self.before)


class Fuzzer:
    """Runs mutants in `folder` and counts what becomes of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.limits = Limits()
        *self.small, self.big = cases()
        for case in (*self.small, self.big):
            for index, image in enumerate(case.images):
                (self.folder / case.file_name(index)).touch()
                self._save(case, index, image.data)

    def run(self, number: int) -> None:
        """Make mutant `number` and open it."""
        rng = random.Random(f"{self.seed}:{number}")
        case = self.big if rng.random() < BIG_SHARE else rng.choice(self.small)
        index = rng.randrange(len(case.images))
        image = case.images[index]
        mutators, weights = zip(*MUTATORS, strict=True)
        mutant = rng.choices(mutators, weights)[0](rng, image, case.size)
        self.counts["header"] += mutant.position < image.header_end
        self._save(case, index, mutant.data)
        path = self.folder / case.file_name(rng.randrange(len(case.images)))
        try:
            with self.limits.around(case.size or sum(len(image.data) for image in case.images)):
                walk(open_gguf(path))
            self.counts["opened"] += 1
        except GGUFError as error:
            self.counts["rejected"] += 1
            if "\n" in str(error) or len(str(error)) > 500:
                self.failures.append(f"mutant {number} of {case.name} ({mutant.what}): long message {error!r:.500}")
        except BaseException:
            self.failures.append(f"mutant {number} of {case.name} ({mutant.what}):\n{traceback.format_exc()}")
        if len(case.images) > 1:
            self._save(case, index, image.data)

    def _save(self, case: Case, index: int, data: bytes) -> None:
        # Emptying a file and writing it anew makes some file systems wait for the disk; overwriting does not.
        with (self.folder / case.file_name(index)).open("r+b") as file:
            file.write(data)
            file.truncate()
            file.truncate(max(case.size, len(data)))


def main() -> int:
    """Run the mutants that the arguments ask for and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), arguments.seed)
        for number in range(arguments.first, arguments.first + arguments.mutants):
            fuzzer.run(number)
    for failure in fuzzer.failures[:20]:
        print(failure, file=sys.stderr)
    print(json.dumps({"mutants": arguments.mutants, "failures": len(fuzzer.failures), **fuzzer.counts}))
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
