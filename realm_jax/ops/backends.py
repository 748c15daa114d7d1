"""Which implementation an operation uses: the one place that turns a request into a backend name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import jax

import cpu_kernels
from cpu_kernels import InstructionSet
from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul import Activations
from realm_jax.ops import mlx

Implementation = Literal[
    "xla",
    "cpu",
    "null",
    "triton",
    "tpu",
    "mps",
    "triton_interpreted",
    "tpu_interpreted",
    "triton_int8",
    "triton_int8_interpreted",
]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
"""`xla`: the reference, on every platform. `cpu`: native kernels; a program with them cannot be exported (build with
`xla` for that). `null`: the same calls with kernels that compute nothing, to measure what a step costs beside them.
`triton` and `tpu`: Pallas kernels for NVIDIA GPUs and for TPUs. `triton_int8`: `triton`, but that more than 16 rows of
activations are rounded to 8 bits where they meet a matrix of a type with groups of 32; to try on GPUs whose bfloat16
units are slow. `triton_interpreted`, `tpu_interpreted` and `triton_int8_interpreted`: the same, interpreted on any
platform, slowly, to check numbers. `mps`: MLX's kernels on Apple GPUs, by the plug-in jax-mps. All but `xla`, `cpu` and
`mps` are never chosen unless named."""

# For implementations that belong to a device: JAX's names of its platform, and what people call it.
_DEVICES: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "triton": (("gpu", "cuda", "rocm"), "a GPU"),
        "triton_int8": (("gpu", "cuda", "rocm"), "a GPU"),
        "tpu": (("tpu",), "a TPU"),
        "mps": (("mps",), "an Apple GPU"),
    }
)

# Implementations whose kernels round activations to 8 bits, and those like them that do not.
_INT8: Mapping[str, Implementation] = MappingProxyType(
    {"triton_int8": "triton", "triton_int8_interpreted": "triton_interpreted"}
)


def fastest_implementation() -> Implementation:
    """What this installation runs fastest on JAX's default backend: native or MLX's kernels where they can be used."""
    platform = jax.default_backend()
    if platform == "mps" and mlx.why_unavailable() is None:
        return "mps"
    return "cpu" if platform == "cpu" and cpu_kernels.is_available() else "xla"


def why_slow() -> str | None:
    """What keeps `fastest_implementation` from native kernels on a CPU, with its remedy; None where nothing does."""
    return cpu_kernels.why_unavailable() if jax.default_backend() == "cpu" else None


def instruction_set_of(implementation: str | None) -> InstructionSet:
    """What the native kernels of an implementation run on."""
    return InstructionSet.NULL if implementation == "null" else InstructionSet.BEST


def is_native(implementation: str | None) -> bool:
    """Whether an implementation is that of the native CPU kernels, `null` included."""
    return choose_implementation(implementation) in ("cpu", "null")


def is_metal(implementation: str | None) -> bool:
    """Whether an implementation is that of MLX's kernels."""
    return choose_implementation(implementation) == "mps"


def pallas_backend(implementation: str | None) -> tuple[Backend, bool] | None:
    """The backend of Pallas kernels that an implementation stands for, and whether it is interpreted."""
    chosen = choose_implementation(implementation)
    if chosen in ("triton", "triton_int8", "triton_interpreted", "triton_int8_interpreted"):
        return "triton", chosen.endswith("_interpreted")
    return ("tpu", chosen != "tpu") if chosen in ("tpu", "tpu_interpreted") else None


def pallas_activations(implementation: str | None) -> Activations:
    """What Pallas kernels of an implementation multiply many rows of activations as."""
    return "int8" if choose_implementation(implementation) in _INT8 else "bfloat16"


def without_rounding(implementation: str | None) -> str | None:
    """An implementation, or the one like it whose Pallas kernels do not round activations to 8 bits."""
    return _INT8.get(implementation, implementation) if implementation else None


def layout_name(implementation: str | None) -> str:
    """The layout of weights, among those of `realm_jax.quant.layouts`, that an implementation takes."""
    backend = pallas_backend(implementation)
    if backend is not None:
        return backend[0]
    if is_metal(implementation):
        return "mps"
    return "cpu" if is_native(implementation) else "blocks"


def require_device(implementation: Implementation) -> None:
    """RuntimeError where weights cannot be loaded for an implementation: its device is not JAX's default one."""
    platforms, name = _DEVICES.get(implementation, (None, ""))
    if platforms is not None and jax.default_backend() not in platforms:
        instead = "'xla' or None" if implementation == "mps" else f"{implementation}_interpreted to check numbers"
        raise RuntimeError(
            f"implementation {implementation!r} needs {name}, but JAX's default device is of platform "
            f"{jax.default_backend()!r}; use {instead} here"
        )


def require_split(implementation: Implementation) -> None:
    """ValueError where an implementation's kernels cannot be run on the parts of weights that a mesh's devices hold."""
    if implementation == "mps":
        raise ValueError("implementation on a mesh must be one for several devices, got 'mps'; leave out mesh")


def choose_implementation(requested: str | None) -> Implementation:
    """The implementation to use, decided outside any traced function.

    `None` is the reference, `xla`. An explicit name is taken or refused, never replaced: ValueError for an unknown
    one, RuntimeError for one that cannot be used here.
    """
    if requested is None:
        return "xla"
    chosen: Implementation | None = next((name for name in IMPLEMENTATIONS if name == requested), None)
    if chosen is None:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {requested!r}")
    if chosen in ("cpu", "null") and not cpu_kernels.is_available():
        raise RuntimeError(f"implementation {chosen!r} cannot be used: {cpu_kernels.why_unavailable()}")
    if chosen == "mps" and (why := mlx.why_unavailable()) is not None:
        raise RuntimeError(f"implementation {chosen!r} cannot be used: {why}")
    return chosen
