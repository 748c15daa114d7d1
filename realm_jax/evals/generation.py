"""Generation requests of lm-evaluation-harness: a context and its `gen_kwargs` become a prompt and SamplingParams."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from realm_jax.engine.request import Prompt
from realm_jax.sampling import SamplingParams

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {field.name for field in dataclasses.fields(SamplingParams)} - {"n", "stop", "max_tokens"}


def generation_request(
    context: list[int], options: Mapping[str, Any], max_length: int, default_length: int
) -> tuple[Prompt, SamplingParams]:
    """One request: the context without what does not fit at its left, and how to go on.

    `options`: `until` (a string or several), the most tokens under any of the harness's names, `temperature` and
    `do_sample` (greedy unless sampling is asked for), and fields of SamplingParams. ValueError for others.
    """
    given = {name: value for name, value in options.items() if value is not None}
    until = given.pop("until", [])
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    lengths = [int(given.pop(name)) for name in _LENGTHS if name in given]
    length = lengths[0] if lengths else default_length
    if length >= max_length:
        raise ValueError(f"max_gen_toks must be below max_length = {max_length}, got {length}; set it in --gen_kwargs")
    temperature = float(given.pop("temperature", 0.0))
    if not given.pop("do_sample", temperature > 0):
        temperature = 0.0
    unknown = sorted(given.keys() - _KNOWN)
    if unknown:
        raise ValueError(f"gen_kwargs must be known to SamplingParams, got {', '.join(unknown)}; remove them")
    settings = {"skip_special_tokens": False, **given}
    params = SamplingParams(temperature=temperature, max_tokens=length, stop=stops or None, **settings)
    return {"prompt_token_ids": context[-(max_length - length) :]}, params
