"""Lines of a batch file, in OpenAI's form: which request each is, and what is wrong with those that are none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DUPLICATE = "duplicate_custom_id"
_LONGEST = 2**26  # bytes of a line; beyond it the file is something else


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineError:
    """Why a line gets no answer of the model: a code for programs and a sentence for people."""

    code: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLine:
    """Line `number`, from 1: a request for `url`, or an error. `custom_id` None where it has none."""

    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: LineError | None = None

    @property
    def id(self) -> str:
        """What its answer is called."""
        return f"line-{self.number}"

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same from run to run, so that it is answered once."""
        return answer_key(self.id, self.custom_id, None if self.error is None else self.error.code)


def answer_key(line_id: str, custom_id: str | None, code: str | None) -> tuple[str, str]:
    """The key of the line that an answer belongs to: its custom_id, or its number where that is not its own."""
    return ("line", line_id) if custom_id is None or code == DUPLICATE else ("custom_id", custom_id)


def read_lines(path: Path) -> Iterator[BatchLine]:
    """The lines of a batch file but for blank ones; of those with one custom_id the first is the request."""
    seen: set[str] = set()
    with path.open("rb") as file:
        number = 0
        while text := file.readline(_LONGEST + 1):
            number += 1
            if len(text) > _LONGEST:
                raise ValueError(f"line {number} of {path} must have at most {_LONGEST} bytes; is it a batch file?")
            if not text.strip():
                continue
            line = _parse(number, text)
            if line.custom_id in seen:
                error = LineError(code=DUPLICATE, message=f"custom_id {line.custom_id!r} is that of an earlier line")
                line = dataclasses.replace(line, error=error)
            elif line.custom_id is not None:
                seen.add(line.custom_id)
            yield line


def _parse(number: int, text: bytes) -> BatchLine:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _bad(number, None, "invalid_json", f"the line must be JSON in UTF-8: {error}")
    if not isinstance(value, dict):
        return _bad(number, None, "invalid_line", f"the line must be an object, got {type(value).__name__}")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return _bad(number, None, "missing_custom_id", f"custom_id must be a text, got {custom_id!r:.80}")
    if value.get("method", "POST") != "POST":
        return _bad(number, custom_id, "invalid_method", f"method must be POST, got {value['method']!r:.80}")
    if value.get("url") not in (CHAT, COMPLETIONS):
        return _bad(number, custom_id, "invalid_url", f"url must be {CHAT} or {COMPLETIONS}, got {value.get('url')!r}")
    if not isinstance(value.get("body"), dict):
        return _bad(number, custom_id, "invalid_body", f"body must be an object, got {value.get('body')!r:.80}")
    return BatchLine(number=number, custom_id=custom_id, url=value["url"], body=value["body"])


def _bad(number: int, custom_id: str | None, code: str, message: str) -> BatchLine:
    return BatchLine(number=number, custom_id=custom_id, error=LineError(code=code, message=message))
