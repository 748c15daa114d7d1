"""Counts the bytes that a compiled program moves to and from a device's memory, from the text of its instructions.

The rule: every instruction that is launched by itself - a fusion, a kernel, a copy, a product - reads what it needs of
its operands and writes its results, once. What happens inside of a fusion stays in registers. A gather and a slice
read as many elements as they return; a scatter and an update in place write as many as they are given, and leave the
rest of their array alone. Products with experts or adapters read as many of a stack of matrices as they have blocks of
rows, or of experts no more than the caller says that tokens choose; attention reads of a paged cache what the caller
says that the batch sees. A loop counts its body as often as it runs, and a conditional its most expensive branch. No
figure of XLA's own enters. Caches of the device are not modelled: what is written and read again at once counts twice.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from realm_jax.plan.hlo import Array, Computation, Instruction, Program, read_program

_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency")
) | frozenset(("partition-id", "replica-id", "copy-done", "async-done", "async-update", "send-done", "recv-done"))
_WHOLE = frozenset(
    ("dot", "convolution", "sort", "reduce-window", "custom-call", "fft", "select-and-scatter", "cholesky", "map")
) | frozenset(("triangular-solve", "rng-bit-generator", "topk", "scan"))
_COLLECTIVE = ("all-", "collective-", "reduce-scatter", "ragged-all-")
# Kernels of pallas_kernels whose first operand names the expert, or adapter, of each block of rows.
_EXPERTS = "moe_grouped_matmul"
_GROUPED = (_EXPERTS, "grouped_lora")
_PAGED = "paged_attention"
_OPERAND_SHAPES = re.compile(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}")
_NO_LARGER = frozenset(("broadcast", "slice", "pad"))
_IN_PLACE = frozenset(("dynamic-update-slice", "scatter"))
_NOTHING: Mapping[tuple[int, ...], float] = MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes read and written by kind of instruction, and loops whose number of trips is not known: they count once."""

    by_kind: Mapping[str, float]
    unknown_loops: int

    @property
    def bytes(self) -> int:
        """All bytes."""
        return round(sum(self.by_kind.values()))


def bytes_moved(
    text: str, seen: Mapping[tuple[int, ...], float] = _NOTHING, *, experts_read: float = math.inf
) -> Traffic:
    """What the program of this text moves on one device; the module says by which rule.

    `seen`: of paged caches of these shapes the share that the kernels of attention read; of others they read all.
    `experts_read`: of a layer's experts on the device, how many the tokens choose.
    """
    program = read_program(text)
    walk = _Walk(program, seen, experts_read)
    return Traffic(by_kind=walk.computation(program.entry), unknown_loops=walk.unknown_loops)


class _Walk:
    def __init__(self, program: Program, seen: Mapping[tuple[int, ...], float], experts_read: float) -> None:
        self._computations = program.computations
        self._seen = seen
        self._experts_read = experts_read
        self.unknown_loops = 0

    def computation(self, computation: Computation) -> dict[str, float]:
        """What the instructions of a computation move, one after the other."""
        launched = [one for one in computation.instructions if one.opcode not in _FREE]
        return _sums(self._instruction(one, computation) for one in launched if not one.opcode.endswith("-done"))

    def _instruction(self, one: Instruction, around: Computation) -> Mapping[str, float]:
        if one.opcode == "while":
            return self._loop(one)
        if one.opcode == "conditional":
            costs = [self.computation(self._computations[name]) for name in one.branches]
            return max(costs, key=lambda cost: sum(cost.values()))
        inner = one.called("to_apply" if one.opcode == "call" else "calls")
        if one.opcode in ("call", "async-start") and inner:
            return self.computation(self._computations[inner])
        given = [around.by_name[name].arrays for name in one.operands]
        if one.opcode == "fusion" and inner:
            return {"fusion": self._fusion(one, self._computations[inner], given)}
        if one.opcode == "copy-start":  # of (target, source, context)
            return {"copy": one.arrays[0].bytes + sum(array.bytes for array in given[0])}
        if one.opcode in ("slice-start", "dynamic-slice-start"):  # of ((operands), target, context)
            target = one.arrays[len(given)]
            return {"slice": target.bytes + dataclasses.replace(target, in_memory=given[0][0].in_memory).bytes}
        return {one.opcode.removesuffix("-start"): self._alone(one, given)}

    def _loop(self, one: Instruction) -> Mapping[str, float]:
        body, condition = (self._computations[one.called(key) or ""] for key in ("body", "condition"))
        trips = one.trips or self._bound(condition)
        if trips is None:
            self.unknown_loops += 1
        inside = _sums((self.computation(body), self.computation(condition)))
        return {kind: (trips or 1) * count for kind, count in inside.items()}

    def _bound(self, condition: Computation) -> int | None:
        """The only integer that a loop's condition holds: what its counter is compared with."""
        called = (self._computations.get(one.called("calls") or "") for one in condition.instructions)
        inside = [condition, *(found for found in called if found)]
        constants = [one for part in inside for one in part.instructions if one.opcode == "constant"]
        numbers = [int(one.literal) for one in constants if re.fullmatch(r"\d+", one.literal)]
        return numbers[0] if len(numbers) == 1 else None

    def _alone(self, one: Instruction, given: Sequence[tuple[Array, ...]]) -> float:
        """An instruction outside of fusions."""
        sizes = [sum(array.elements for array in arrays) for arrays in given]
        needs = _needs(one, sizes, float(one.elements), in_place=True)
        if one.opcode == "custom-call" and _PAGED in one.rest:
            shapes = _operand_shapes(one, len(sizes)) or [()] * len(sizes)
            needs = [need * self._seen.get(shape, 1.0) for need, shape in zip(needs, shapes, strict=True)]
        if one.opcode == "custom-call" and any(name in one.rest for name in _GROUPED):
            needs = _of_stacks(one, needs, self._experts_read if _EXPERTS in one.rest else math.inf)
        read = sum(
            min(1.0, need / size) * sum(array.bytes for array in arrays)
            for need, size, arrays in zip(needs, sizes, given, strict=True)
            if size
        )
        if one.opcode in _IN_PLACE:
            return read + sum(given[at][0].bytes for at in _updates(one))
        aliased = len(re.findall(r"\{[\d, ]*\}: \(\d+", one.rest)) if "output_to_operand_aliasing" in one.rest else 0
        written = one.arrays if aliased == 0 else one.arrays[aliased:] if len(one.arrays) > aliased else ()
        return read + sum(array.bytes for array in written)

    def _fusion(self, one: Instruction, fused: Computation, given: Sequence[tuple[Array, ...]]) -> float:
        read = 0.0
        for need, arrays in zip(self._parameters(fused, len(given)), given, strict=True):
            size = sum(array.elements for array in arrays)
            read += min(1.0, need / size) * sum(array.bytes for array in arrays) if size else 0.0
        roots = _roots(fused)
        if len(roots) != len(one.arrays):
            return read + one.bytes
        written = 0.0
        for root, array in zip(roots, one.arrays, strict=True):
            if _updates_in_place(root, fused):
                updates = sum(fused.by_name[root.operands[at]].elements for at in _updates(root))
                array = dataclasses.replace(array, elements=updates)
            written += array.bytes
        return read + written

    def _parameters(self, fused: Computation, count: int) -> list[float]:
        """How many elements of each parameter a fusion needs for all of its results."""
        demand: dict[str, float] = collections.defaultdict(float)
        roots = {root.name for root in _roots(fused)}
        for name in roots | {fused.root.name}:
            demand[name] = float(fused.by_name[name].elements)
        needed = [0.0] * count
        for one in reversed(fused.instructions):
            wanted = min(demand[one.name], float(one.elements))
            if one.opcode == "parameter":
                needed[int(one.literal)] = wanted
                continue
            sizes = [fused.by_name[name].elements for name in one.operands]
            inner = self._computations.get(one.called("calls") or "") if one.opcode == "fusion" else None
            if inner is not None:
                needs: Sequence[float] = self._parameters(inner, len(sizes))
            else:
                in_place = one.name in roots and _updates_in_place(one, fused)
                needs = _needs(one, sizes, wanted, in_place=in_place)
            for name, need in zip(one.operands, needs, strict=True):
                demand[name] += need if wanted else 0.0
        return needed


def _sums(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = collections.defaultdict(float)
    for cost in costs:
        for kind, count in cost.items():
            total[kind] += count
    return dict(total)


def _needs(one: Instruction, sizes: Sequence[int], wanted: float, *, in_place: bool) -> list[float]:
    """How many elements of each operand are read to make `wanted` elements of a result."""
    opcode, whole = one.opcode, [float(size) for size in sizes]
    if opcode in _WHOLE or opcode.startswith(_COLLECTIVE):
        return whole
    if opcode in ("gather", "dynamic-slice"):
        return [wanted, *whole[1:]]
    if opcode == "dynamic-update-slice":
        return [0.0 if in_place else max(0.0, wanted - sizes[1]), min(whole[1], wanted), *whole[2:]]
    if opcode == "scatter":
        bases = (len(sizes) - 1) // 2
        return [*([0.0] * bases if in_place else whole[:bases]), *whole[bases:]]
    if opcode in _NO_LARGER:
        return [min(size, wanted) for size in whole]
    share = wanted / one.elements if one.elements else 0.0
    return [size * share for size in whole]


def _of_stacks(one: Instruction, sizes: Sequence[float], most: float) -> list[float]:
    """A kernel's operands: of arrays with three axes, `[experts, ...]`, an expert for each block of rows, or `most`."""
    shapes = _operand_shapes(one, len(sizes))
    if shapes is None:
        return list(sizes)
    read = min(sizes[0], most)
    leads = [shape[0] if len(shape) == 3 else 0 for shape in shapes]
    return [size * min(1.0, read / lead) if lead else size for size, lead in zip(sizes, leads, strict=True)]


def _operand_shapes(one: Instruction, count: int) -> list[tuple[int, ...]] | None:
    """The shapes of a kernel's operands, None where the text does not tell those of all `count`."""
    listed = _OPERAND_SHAPES.search(one.rest)
    shapes = re.findall(r"\w\[([\d,]*)\]", listed[1]) if listed else []
    return [tuple(map(int, filter(None, shape.split(",")))) for shape in shapes] if len(shapes) == count else None


def _updates(one: Instruction) -> range:
    """Which operands of an update in place are what is written."""
    if one.opcode == "dynamic-update-slice":
        return range(1, 2)
    return range((len(one.operands) + 1) // 2, len(one.operands))


def _roots(fused: Computation) -> list[Instruction]:
    """The instructions that make a fusion's results, behind the casts that only rename them."""
    root = fused.root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    return [_behind_bitcasts(fused.by_name[name], fused) for name in names]


def _behind_bitcasts(one: Instruction, fused: Computation) -> Instruction:
    return _behind_bitcasts(fused.by_name[one.operands[0]], fused) if one.opcode == "bitcast" else one


def _updates_in_place(one: Instruction, fused: Computation) -> bool:
    """Whether it writes into what the fusion is given; of an array that the fusion makes, it writes all."""
    if one.opcode not in _IN_PLACE:
        return False
    return _behind_bitcasts(fused.by_name[one.operands[0]], fused).opcode == "parameter"
