"""Which configurations of a product's kernel are worth trying: what is legal among a few values of each field."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from pallas_kernels.case import Backend
from pallas_kernels.quantized_matmul.config import (
    CUDA_DECODE,
    CUDA_INT8,
    CUDA_PREFILL,
    TPU_DECODE,
    Config,
    MatmulShape,
    kernel_for,
)

_Values = Mapping[str, Sequence[int]]


def candidates(shape: MatmulShape, backend: Backend) -> list[Config]:
    """Legal configurations of `kernel_for(shape, backend)`, the heuristic's first."""
    kernel = kernel_for(shape, backend)
    first = kernel.heuristic(shape)
    values = _values(shape, backend)
    made = (
        kernel.heuristic(shape, **dict(zip(values, chosen, strict=True)))
        for chosen in itertools.product(*values.values())
    )
    return list(dict.fromkeys([first, *(config for config in made if not kernel.problem(shape, config))]))


def _values(shape: MatmulShape, backend: Backend) -> _Values:
    """Values to combine, of the fields that do not follow from others."""
    kernel, form = kernel_for(shape, backend), shape.form
    if kernel is CUDA_DECODE:
        usual = 256 // form.group
        return {
            "rows": (16, 32, 64, 128),
            "warps": (1, 2, 4),
            "stages": (2, 3, 4, 6),
            "groups": (usual // 2, usual, 2 * usual),
        }
    if kernel in (CUDA_PREFILL, CUDA_INT8):
        sides = (32, 64, 128, 256)
        return {"tokens": sides, "rows": sides, "warps": (4, 8), "stages": (2, 3, 4), "groups": (form.fields,)}
    rows = (128, 256, 384, 512, 768, 1024)
    columns = (256, 512, 1024, 2048, 4096)
    if kernel is TPU_DECODE:
        return {"rows": rows, "columns": columns}
    return {"tokens": sorted({min(shape.tokens, n) for n in (128, 256, 512)}), "rows": rows, "columns": columns}
