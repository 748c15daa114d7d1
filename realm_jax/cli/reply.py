"""Owns one streamed reply: its text as it comes, and its tokens and timings at the end."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from realm_jax.cli.console import status

if TYPE_CHECKING:
    from realm_jax import LLM, SamplingParams
    from realm_jax.outputs import RequestOutput


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds and tokens a second of one reply.

    Attributes:
        load_seconds: loading the model, imports included.
        first_token_seconds: from the request to the first token: prefill, and compiling what was not compiled yet.
        decode_seconds: from the first token to the last.
        decode_tokens_per_second: the tokens after the first by decode_seconds, None where there is none.
    """

    load_seconds: float
    first_token_seconds: float
    decode_seconds: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A finished reply. `finish_reason` is "stop", "length", or "abort" when the user interrupted it."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str | None
    timings: Timings

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Say counts, speed and waiting times in one line."""
        rate = self.timings.decode_tokens_per_second
        parts = [
            f"{len(self.prompt_token_ids)} prompt tokens",
            f"{len(self.token_ids)} generated" + (f" at {rate:.1f} tokens/s" if rate else ""),
            f"loaded in {self.timings.load_seconds:.1f} s",
            f"first token {self.timings.first_token_seconds:.2f} s later, compiling included",
            f"finish reason {self.finish_reason}",
        ]
        return "; ".join(parts)


def stream_reply(
    llm: "LLM",
    prompt: str | Mapping[str, Any],
    params: "SamplingParams",
    *,
    load_seconds: float = 0.0,
    write: Callable[[str], object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Reply:
    """Generate from a prompt, handing each new piece of text to write, until the end or until stopped() says so."""
    shown, last, interrupted = 0, None, False
    outputs = cast("Generator[RequestOutput, None, None]", llm.stream(prompt, params))
    with status("Compiling and reading the prompt ...") as clear, contextlib.closing(outputs) as stream:
        for last in stream:
            clear()
            text = last.outputs[0].text
            if write is not None:
                write(text[shown:])
            shown = len(text)
            if interrupted := not last.finished and stopped():
                break
    assert last is not None
    return _reply(last, load_seconds, interrupted)


def _reply(output: "RequestOutput", load_seconds: float, interrupted: bool) -> Reply:
    sample, moments = output.outputs[0], output.metrics
    first = moments.first_token_time or moments.arrival_time
    finished = moments.finished_time or first
    decoded, seconds = len(sample.token_ids) - 1, finished - first
    timings = Timings(
        load_seconds=load_seconds,
        first_token_seconds=first - moments.arrival_time,
        decode_seconds=seconds,
        decode_tokens_per_second=decoded / seconds if decoded > 0 and seconds > 0 else None,
    )
    return Reply(
        text=sample.text,
        token_ids=list(sample.token_ids),
        prompt_token_ids=list(output.prompt_token_ids),
        finish_reason="abort" if interrupted else sample.finish_reason,
        timings=timings,
    )
