"""A plan as a document for machines: plain values under names that stay."""

from __future__ import annotations

import dataclasses
from typing import Any

from realm_jax.plan.report import Plan
from realm_jax.plan.roofline import Roofline

SCHEMA = 2
"""Raised when a name changes its meaning or goes; new names may come at any time."""


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan; bytes, operations and seconds are those of one device, tokens a second of all sequences together."""
    request, device, config = plan.request, plan.device, plan.config
    return {
        "schema": SCHEMA,
        "model": {
            "architecture": config.architecture,
            "layers": config.num_layers,
            "parameters": sum(weight.elements for weight in plan.weights),
            "file_bytes": plan.file_bytes,
            "trained_context": config.context_length,
        },
        "target": {
            "name": request.target,
            "device": device.title,
            "chips": request.chips,
            "memory": int(device.memory),
            "bandwidth": device.bandwidth,
            "bfloat16": device.bfloat16,
            "int8": device.int8,
            "source": device.source,
        },
        "settings": {
            "context": request.context,
            "batch": request.batch,
            "tp": request.chips,
            "kv_cache_dtype": request.kv_cache_dtype,
            "implementation": request.implementation,
        },
        "fits": plan.fits,
        "bytes_per_device": {
            "weights": plan.weight_bytes,
            "kv_cache": plan.cache_bytes,
            "padding": plan.padding_bytes,
            "temporaries": plan.temporary_bytes,
            "total": plan.total_bytes,
        },
        "room": dataclasses.asdict(plan.room),
        "split": [dataclasses.asdict(row) for row in plan.splits] if request.chips > 1 else [],
        "kv_cache_parts": plan.cache[0].parts,
        "fallbacks": dict(plan.fallbacks),
        "roofline": {"decode": _roofline(plan.decode), "prefill": _roofline(plan.prefill)},
        "bytes_moved": _moved(plan),
        "compiled": {name: dataclasses.asdict(step) for name, step in plan.compilation.steps.items()},
        "not_compiled": plan.compilation.failure or None,
    }


def _roofline(bound: Roofline) -> dict[str, Any]:
    derived = {"seconds": bound.seconds, "tokens_per_second": bound.tokens_per_second, "bound": bound.bound}
    return {**dataclasses.asdict(bound), **derived}


def _moved(plan: Plan) -> dict[str, Any] | None:
    moved = plan.bytes_moved
    if moved is None:
        return None
    needed = plan.decode.bytes
    return {
        "decode": moved,
        "needed": needed,
        "ratio": moved / needed,
        "scaled": not plan.compilation.steps["decode"].whole,
    }
