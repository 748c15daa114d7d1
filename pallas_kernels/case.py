"""What a kernel is tested, compiled and measured on: a named case that can be built for each backend."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Backend = Literal["triton", "tpu"]
"""`triton`: NVIDIA GPUs from sm_80 on, through Pallas's Triton lowering. `tpu`: TPUs from v5e on, through Mosaic."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A traceable function with what it is compiled for.

    `operands`: the function's arguments as trees of `jax.ShapeDtypeStruct`. `entry`: the name of the kernel in the
    compiled program. `codes`: how many weight codes there are, `loop_codes` how many one thread takes in a trip of the
    kernel's main loop (CUDA) or a grid step takes (TPU); None where the time for a code is not what bounds the kernel.
    `bytes_moved` and `flops`: the least that the operation has to do.
    """

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    entry: str
    loop_codes: int | None = None
    codes: int | None = None
    bytes_moved: int | None = None
    flops: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What a tuner may choose for a case: the keys of an entry in `pallas_kernels.tuning`, and the candidates.

    `candidates` are legal configurations, frozen dataclasses of one type, the heuristic's first. `program` is the case
    with one of them, interpreted where `interpret=True` is given too. `derived`: fields that follow from the others,
    which a table leaves out.
    """

    kernel: str
    format: str
    sizes: Mapping[str, int]
    candidates: Sequence[Any]
    program: Callable[..., Program]
    derived: Sequence[str] = ()


class KernelCase(abc.ABC):
    """One line of an op's `cases.py`. Subclasses hold the shapes and make their own inputs and bounds for the tests."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """A short name, unique within the op, such as `decode Q4_K 8x4096x4096`."""

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends that the case is meant for."""
        return ("triton", "tpu")

    @property
    def note(self) -> str:
        """A reason to print beside the case's row, such as why its registers spill; empty where none is needed."""
        return ""

    def search(self, backend: Backend) -> Search | None:
        """What may be chosen for the case; None where another case's kernel decides."""
        return None

    @abc.abstractmethod
    def program(self, backend: Backend) -> Program:
        """What to compile or measure; ValueError for a backend that is not among `backends`."""
