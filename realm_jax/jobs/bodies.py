"""Bodies of OpenAI requests as prompts and SamplingParams; what is not supported is refused, not dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from realm_jax.engine import LLMEngine, Prompt
from realm_jax.jobs.lines import CHAT, BatchLine
from realm_jax.sampling import RequestOutputKind, SamplingParams
from realm_jax.structured import StructuredOutputs

# Of SamplingParams under its own names; the last ones are vLLM's additions to OpenAI's.
_SAMPLING = (
    *("n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop"),
    *("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"),
)
# Say who asks and where the answer is kept, or ask for what is done anyway.
_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "stream", "logprobs", "response_format"})
_CHAT_ONLY = ("messages", "max_completion_tokens", "top_logprobs", "tools", "chat_template_kwargs")
_COMPLETION_ONLY = ("prompt",)
_COMPLETION_TOKENS = 16  # OpenAI's default; chats go on to the end of the context


def request_of(line: BatchLine, engine: LLMEngine, seed: int) -> tuple[Prompt, SamplingParams]:
    """What a line asks of the engine. ValueError or TypeError says what is wrong with it.

    A request without a seed of its own gets one from its custom_id and `seed`, so that it has the same answer in
    whatever order, and however often interrupted, the job runs.
    """
    body = {name: value for name, value in line.body.items() if value is not None}
    chat = line.url == CHAT
    own = _CHAT_ONLY if chat else _COMPLETION_ONLY
    unknown = sorted(body.keys() - {*_SAMPLING, *_IGNORED, *own, "max_tokens", "logit_bias"})
    if unknown or body.get("stream"):
        raise ValueError(f"the body has what is not supported: {', '.join(unknown or ['stream'])}; remove it")
    chosen = {name: body[name] for name in _SAMPLING if name in body}
    chosen.setdefault("seed", _seed(line.custom_id or line.id, seed))
    if "logit_bias" in body:
        chosen["logit_bias"] = {int(token): bias for token, bias in _mapping(body, "logit_bias").items()}
    if "response_format" in body:
        chosen["structured_outputs"] = _constraint(_mapping(body, "response_format"))
    limit = body.get("max_completion_tokens", body.get("max_tokens", None if chat else _COMPLETION_TOKENS))
    chosen |= {"logprobs": _logprobs(body, chat=chat), "output_kind": RequestOutputKind.FINAL_ONLY}
    params = SamplingParams(max_tokens=limit, **chosen)
    return (_chat_prompt(body, engine) if chat else _prompt(body)), params


def _seed(custom_id: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{custom_id}".encode(), digest_size=8).digest(), "little")


def _prompt(body: Mapping[str, Any]) -> Prompt:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return {"prompt_token_ids": prompt}
    raise ValueError("prompt must be one text or one list of token ids; write a line for each of several prompts")


def _chat_prompt(body: Mapping[str, Any], engine: LLMEngine) -> Prompt:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    told = [_message(message) for message in messages]
    extra = _mapping(body, "chat_template_kwargs") if "chat_template_kwargs" in body else {}
    return engine.chat_prompt(told, tools=body.get("tools"), add_generation_prompt=True, **extra)


def _message(message: Any) -> dict[str, Any]:
    """A message whose content is a text, also where it comes in parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"a message must be an object with a role, got {message!r:.80}")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("the parts of a message must be texts; this model reads nothing else")
        content = "".join(part["text"] for part in content)
    return {**message, "content": content}


def _logprobs(body: Mapping[str, Any], *, chat: bool) -> int | None:
    """Top tokens to report: a number for completions; for chats whether, and `top_logprobs` how many."""
    wanted = body.get("logprobs")
    if not chat:
        return wanted
    return body.get("top_logprobs", 0) if wanted else None


def _constraint(form: Mapping[str, Any]) -> StructuredOutputs | None:
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True)
    if kind == "json_schema":
        return StructuredOutputs(json=_mapping(_mapping(form, "json_schema"), "schema"))
    raise ValueError(f"response_format must be of type text, json_object or json_schema, got {kind!r}")


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, got {value!r:.80}")
    return value
