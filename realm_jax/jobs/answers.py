"""Answers to the lines of a batch file, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from realm_jax.jobs.lines import CHAT, BatchLine, LineError
from realm_jax.outputs import CompletionOutput, LogprobsByToken, RequestOutput


def error_line(line: BatchLine, error: LineError) -> dict[str, Any]:
    """The answer to a line that is no request, or one that the model cannot take."""
    return {
        "id": line.id,
        "custom_id": line.custom_id,
        "response": None,
        "error": {"code": error.code, "message": error.message},
    }


def answer_line(line: BatchLine, output: RequestOutput, model: str) -> dict[str, Any]:
    """The answer to a request."""
    chat = line.url == CHAT
    written = sum(len(sample.token_ids) for sample in output.outputs)
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{line.id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [(_chat_choice if chat else _text_choice)(sample) for sample in output.outputs],
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": written,
            "total_tokens": len(output.prompt_token_ids) + written,
        },
    }
    response = {"status_code": 200, "request_id": line.id, "body": body}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


def _text_choice(sample: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if sample.logprobs is not None:
        tables = list(zip(sample.token_ids, sample.logprobs, strict=True))
        logprobs = {
            "tokens": [table[token].decoded_token for token, table in tables],
            "token_logprobs": [table[token].logprob for token, table in tables],
            "top_logprobs": [{str(e.decoded_token): e.logprob for e in table.values()} for _, table in tables],
        }
    return {
        "index": sample.index,
        "text": sample.text,
        "logprobs": logprobs,
        "finish_reason": sample.finish_reason,
    }


def _chat_choice(sample: CompletionOutput) -> dict[str, Any]:
    content = None if sample.logprobs is None else _chat_logprobs(sample.token_ids, sample.logprobs)
    return {
        "index": sample.index,
        "message": {"role": "assistant", "content": sample.text},
        "logprobs": None if content is None else {"content": content},
        "finish_reason": sample.finish_reason,
    }


def _chat_logprobs(token_ids: Sequence[int], tables: Sequence[LogprobsByToken]) -> list[dict[str, Any]]:
    rows = []
    for token, table in zip(token_ids, tables, strict=True):
        entries = [{"token": entry.decoded_token, "logprob": entry.logprob} for entry in table.values()]
        chosen = table[token]
        rows.append({"token": chosen.decoded_token, "logprob": chosen.logprob, "top_logprobs": entries})
    return rows
