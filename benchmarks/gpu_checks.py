"""Whether the kernels compute on the device what they should: each case against a wider one, within a derived bound."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from benchmarks.gpu_inputs import BASE_ROWS, RandomWeight, attention_inputs, random_experts, random_weight
from pallas_kernels.case import Backend, KernelCase
from pallas_kernels.grouped_lora import grouped_lora
from pallas_kernels.grouped_lora.cases import LoraCase
from pallas_kernels.moe_grouped_matmul import moe_grouped_matmul
from pallas_kernels.moe_grouped_matmul.cases import GroupedCase
from pallas_kernels.paged_attention import QuantizedKV, dequantize, paged_attention, unpack_pool
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.quantized_matmul import FORMATS, quantized_matmul, unpack
from pallas_kernels.quantized_matmul.blocks import read_groups
from pallas_kernels.quantized_matmul.cases import MatmulCase
from pallas_kernels.quantized_matmul.rounding import RoundedRows, round_rows
from pallas_kernels.routing import gather, route

# Half a unit in the last place, relative; tensor cores take float32 with the mantissa of a half float.
_HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_TF32 = 2.0**-11


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """`error`: the largest deviation as a fraction of its bound, above 1 where the case fails; None: not computed."""

    name: str
    error: float | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether the case was computed within its bound; a NaN is not."""
        return self.error is not None and self.error <= 1


def all_cases(*, small: bool) -> list[KernelCase]:
    """`CASES` of every folder of pallas_kernels, or `SMALL_CASES`."""
    folders = (module.name for module in pkgutil.iter_modules(pallas_kernels.__path__) if module.ispkg)
    modules = [importlib.import_module(f"pallas_kernels.{name}.cases") for name in folders]
    return [case for module in modules for case in (module.SMALL_CASES if small else module.CASES)]


def run_checks(backend: Backend, cases: list[KernelCase], *, interpret: bool, deadline: float) -> Iterator[Check]:
    """A check of each case that the backend has, until the deadline, a time of the monotonic clock."""
    for case in cases:
        if backend not in case.backends:
            continue
        if time.monotonic() > deadline:
            yield Check(name=case.name, failure="no time was left")
            continue
        start = time.monotonic()
        try:
            error = check(case, backend, interpret=interpret)
        except Exception as failure:  # whatever a compiler throws is the case's result
            text = " ".join(str(failure).split())[:200]
            yield Check(name=case.name, failure=f"{type(failure).__name__}: {text}")
            continue
        yield Check(name=case.name, error=error, seconds=time.monotonic() - start)


def check(case: KernelCase, backend: Backend, *, interpret: bool) -> float:
    """The largest deviation of a case as a fraction of its bound; TypeError for a kernel without a reference here."""
    if isinstance(case, MatmulCase):
        return _check_matmul(case, backend, interpret)
    if isinstance(case, GroupedCase):
        return _check_grouped(case, backend, interpret)
    if isinstance(case, AttentionCase):
        return _check_attention(case, backend, interpret)
    if isinstance(case, LoraCase):
        return _check_lora(case, backend, interpret)
    raise TypeError(f"{type(case).__name__} has no reference here")


def _check_matmul(case: MatmulCase, backend: Backend, interpret: bool) -> float:
    shape = (case.rows, case.columns)
    weight = random_weight(case.kind, shape, backend)
    x = jax.random.normal(jax.random.key(case.tokens), (case.tokens, case.columns), jnp.bfloat16)
    options: Any = {"backend": backend, "activations": case.activations, "interpret": interpret}
    multiply = functools.partial(quantized_matmul, kind=case.kind, shape=shape, **options)
    if case.activations == "int8":
        # In one program, which computes what both round alike once.
        both = jax.jit(lambda x, stored: (multiply(x, stored), round_rows(x, FORMATS[case.kind].group)))
        y, rounded = both(x, weight.stored)
        return _rounded_error(case.kind, rounded, weight, np.asarray(y, np.float64))
    y = np.asarray(jax.jit(multiply)(x, weight.stored), np.float64)
    return _product_error(case.kind, x, weight, y, backend, case.tokens)


def _rounded_error(kind: str, x: RoundedRows, weight: RandomWeight, y: np.ndarray) -> float:
    """The largest deviation of the product y of activations in 8 bits: float32 sums of two terms a group, and y's type.

    A term is rounded three times before it is added, and the weights of the comparison by their unpacking.
    """
    columns, base = x.codes.shape[1], min(y.shape[1], BASE_ROWS)
    weights = np.asarray(unpack(weight.stored, kind, (y.shape[1], columns), "triton")[:base], np.float64)
    read, group = read_groups(kind, weight.blocks), FORMATS[kind].group
    offsets = 0.0 if read.offsets is None else np.abs(np.repeat(read.offsets.astype(np.float64), group, axis=-1))
    own = np.repeat(np.asarray(x.scales, np.float64).T, group, axis=1) * np.asarray(x.codes, np.float64)
    exact = own @ weights.T
    bound = (2 * columns // group + 8) * _HALF_UNIT["float32"] * np.abs(own) @ (np.abs(weights) + 2.01 * offsets).T
    bound += _HALF_UNIT["bfloat16"] * (np.abs(exact) + bound)
    outputs = np.arange(y.shape[1]) % base
    return _worst(y, exact[:, outputs], bound[:, outputs])


def _check_grouped(case: GroupedCase, backend: Backend, interpret: bool) -> float:
    shape, rng = (case.rows, case.columns), np.random.default_rng(case.tokens)
    experts = random_experts(case.kind, case.experts, shape, backend)
    order = np.argsort(rng.random((case.tokens, case.experts)), axis=1)
    routing = route(jnp.asarray((order < case.choices).astype(np.float32)), most=case.choices, block=case.block)
    x = gather(jax.random.normal(jax.random.key(case.tokens), (case.tokens, case.columns), jnp.bfloat16), routing)
    multiply = functools.partial(moe_grouped_matmul, kind=case.kind, matrix=shape, backend=backend, interpret=interpret)
    y = np.asarray(jax.jit(multiply)(x, experts.stored, blocks=routing.blocks), np.float64)
    used = int(routing.blocks.used) * case.block
    expert = np.repeat(np.asarray(routing.blocks.owners), case.block)[:used]
    errors = []
    for i, weight in enumerate(experts.own):
        rows = np.flatnonzero(expert % len(experts.own) == i)
        if rows.size:
            errors.append(_product_error(case.kind, x[rows], weight, y[rows], backend, case.block))
    return float(np.max(errors))


def _product_error(kind: str, x: jax.Array, weight: RandomWeight, y: np.ndarray, backend: Backend, rows: int) -> float:
    """The largest deviation of the product y of x with a weight, of `rows` rows at a time."""
    base = min(y.shape[1], BASE_ROWS)
    weights = np.asarray(unpack(weight.stored, kind, (y.shape[1], x.shape[1]), backend)[:base], np.float64)
    wide = np.asarray(x, np.float64)
    exact = wide @ weights.T
    bound = np.abs(wide) @ _weight_rounding(kind, rows, backend, weight.blocks, weights).T
    bound += _HALF_UNIT["bfloat16"] * (np.abs(exact) + bound)
    outputs = np.arange(y.shape[1]) % base
    return _worst(y, exact[:, outputs], bound[:, outputs])


def _weight_rounding(kind: str, rows: int, backend: Backend, blocks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far a product with each weight may be off, per unit of its activation, `rows` rows at a time.

    Up to 16 rows: products of codes, which hold their bias of 128, are exact, and their sums are rounded once a term.
    Else the weight is rounded to bfloat16, on CUDA after its scale and offset, and the sums likewise.
    """
    form, read = FORMATS[kind], read_groups(kind, blocks)
    scales = read.scales.astype(np.float64)
    offsets = np.zeros_like(scales) if read.offsets is None else read.offsets.astype(np.float64)
    if read.supers is not None:
        scales, offsets = (np.repeat(part, 16, axis=-1) for part in (scales, offsets))
        own = read.supers.astype(np.float64)
        scales, offsets = scales * (own % 16 if form.offset else own - 32), offsets * (own // 16)
    scales, offsets = (np.abs(np.repeat(part, form.group, axis=-1)) for part in (scales, offsets))
    scaled = np.abs(weights) + offsets
    sums = weights.shape[1] * _HALF_UNIT["float32"]
    if rows <= 16 and (backend == "triton" or form.exact_on_tpu):
        return sums * (scaled + offsets + 2 * (128 + form.zero) * scales)
    narrow = np.abs(weights) if backend == "tpu" else np.abs(weights) + scaled + offsets
    return 1.01 * _HALF_UNIT["bfloat16"] * narrow + sums * (scaled + offsets)


def _check_attention(case: AttentionCase, backend: Backend, interpret: bool) -> float:
    given = attention_inputs(case)

    def attend(q: Any, pool: Any, batch: Any, sinks: Any) -> jax.Array:
        return paged_attention(q, pool, batch, case.options, backend=backend, sinks=sinks, interpret=interpret)

    out = jax.jit(attend)(given.q, given.pool, given.batch, given.sinks)
    errors, start = [], 0
    for row, (before, new) in enumerate(case.sequences):
        if not new:
            continue
        pages = given.batch[2][row, : -(-(before + new) // case.block_size)]
        kv = unpack_pool(jax.tree.map(lambda array: array[pages], given.pool), case.head_dim)  # noqa: B023
        floats = dequantize(kv) if isinstance(kv, QuantizedKV) else kv.astype(jnp.float32)
        floats = floats.reshape(-1, 2, case.kv_heads, case.head_dim)[: before + new]
        own = slice(start, start + new)
        exact, bound = _dense(given.q[own], floats, given.sinks, before, case, interpret)
        errors.append(_worst(*(np.asarray(x, np.float64) for x in (out[own], exact, bound))))
        start += new
    return float(np.max(errors))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _dense(
    q: jax.Array, kv: jax.Array, sinks: jax.Array | None, before: int, case: AttentionCase, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """Attention of one sequence's tokens in float32, and the bound of how far a kernel's may be from it.

    With u = 2^-24 a score, a sum of D products and 9 more roundings, is off by E <= (D + 9) u sum |q k| scale and 4 u
    of a cap; tensor cores round a float32 q first. A weight is off by a factor of e^(2 E), 17 u, and u for each of
    S additions, in the kernel and here; the kernel rounds it once more to the type that it multiplies.
    """
    u, wide, options = _HALF_UNIT["float32"], q.astype(jnp.float32), case.options
    k, v = (jnp.repeat(kv[:, side], case.heads // case.kv_heads, axis=1) for side in range(2))
    product = functools.partial(jnp.einsum, precision="highest")
    scores = product("thd,shd->ths", wide, k) * options.scale
    rounded = case.dtype == "float32" != case.pool_dtype and not interpret
    relative = (case.head_dim + 9) * u + (_TF32 if rounded else 0.0)
    error = relative * product("thd,shd->ths", jnp.abs(wide), jnp.abs(k)) * options.scale
    if options.softcap is not None:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
        error += 4 * u * options.softcap
    here = before + jnp.arange(q.shape[0])[:, None, None]
    there = jnp.arange(kv.shape[0])[None, None]
    seen = (there <= here) & (there > here - (options.window or kv.shape[0]))
    scores = jnp.where(seen, scores, -jnp.inf)
    extra = jnp.full((1, case.heads, 1), -jnp.inf) if sinks is None else sinks[None, :, None]
    extra = jnp.broadcast_to(extra, (*scores.shape[:2], 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, extra], axis=-1), axis=-1)[..., :-1]
    worst = jnp.max(jnp.where(seen, error, 0.0), axis=-1)[..., None]
    off = jnp.expm1(4 * worst) + _narrowing(case, interpret) + 2 * (2 * kv.shape[0] + 17) * u
    out = product("ths,shd->thd", weights, v)
    spread = off * product("ths,shd->thd", weights, jnp.abs(v))
    return out, spread + _HALF_UNIT[case.dtype] * (jnp.abs(out) + spread)


def _narrowing(case: AttentionCase, interpret: bool) -> float:
    """What rounding a weight costs before it meets values."""
    if case.dtype == case.pool_dtype or (case.dtype, case.pool_dtype) == ("bfloat16", "int8"):
        return _HALF_UNIT[case.dtype]
    return _HALF_UNIT["float32"] if interpret else _TF32


def _check_lora(case: LoraCase, backend: Backend, interpret: bool) -> float:
    """A float32 factor meets bfloat16 as two of them, which hold it to 2^-15, with two terms in each sum."""
    keys = jax.random.split(jax.random.key(case.tokens), 4)
    x, a, b = (
        jax.random.normal(key, shape.shape, shape.dtype) for key, shape in zip(keys, case.operands[:3], strict=False)
    )
    scale = jax.random.uniform(keys[3], (case.adapters,), jnp.float32, 0.5, 2.0)
    ids = np.arange(case.tokens, dtype=np.int32) * case.active // case.tokens
    if case.tokens > case.active:
        ids[-1] = -1
    y = jax.jit(functools.partial(grouped_lora, backend=backend, interpret=interpret))(x, a, b, jnp.asarray(ids), scale)
    u, split = _HALF_UNIT["float32"], 2.0**-15 if case.adapter_dtype == "bfloat16" else 0.0
    errors = [0.0 if not np.any(y[ids < 0]) else np.inf]
    for e in np.unique(ids[ids >= 0]):
        own, down, up = (np.asarray(array, np.float64) for array in (x[ids == e], a[e], b[e]))
        factor = float(scale[e])
        hidden, sizes = factor * (own @ down.T), factor * (np.abs(own) @ np.abs(down).T)
        # Terms of the sums over columns, and their at most 16 parts; the scale, and a rounding of each product.
        off = (2 * (case.columns + 16) * u + (0.0 if case.dtype == "bfloat16" else split)) * sizes
        exact = hidden @ up.T
        bound = (off + (2 * (case.rank + 1) * u + split) * (np.abs(hidden) + off)) @ np.abs(up).T
        bound += _HALF_UNIT[case.dtype] * (np.abs(exact) + bound)
        errors.append(_worst(np.asarray(y[ids == e], np.float64), exact, bound))
    return float(np.max(errors))


def _worst(found: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> float:
    """The largest deviation as a fraction of its bound; NaN where anything is."""
    return float(np.max(np.abs(found - exact) / (bound + 1e-30)))
