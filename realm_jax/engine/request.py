"""Requests: prompts become token ids and sequences, and sequences become outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from itertools import count
from operator import index
from threading import Lock
from typing import Any

import numpy as np

from realm_jax.engine.sequence import PositionLogprobs, Sequence, TokenLogprobs, token_array
from realm_jax.outputs import CompletionOutput, Logprob, LogprobsByToken, RequestMetrics, RequestOutput, Transcript
from realm_jax.sampling import RequestOutputKind, SamplingParams, SamplingRequest, StopChecker
from realm_jax.structured import GrammarCompiler, GrammarState
from realm_jax.tokenizer import Tokenizer

Prompt = str | Mapping[str, Any]
"""A text, `{"prompt": text}`, or `{"prompt_token_ids": [...]}`.

A mapping may hold a `cache_salt` too, a text: only prompts of the same salt share what was computed of a prefix.
"""


@dataclasses.dataclass(kw_only=True, eq=False)
class Request:
    """A prompt with its parameters and its `params.n` sequences."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    sequences: list[Sequence]
    tokenizer: Tokenizer | None
    _known_metrics: RequestMetrics | None = dataclasses.field(default=None, init=False, repr=False)

    @cached_property
    def _transcripts(self) -> list[Transcript]:
        """What the outputs of each sequence are parts of."""
        return [
            Transcript(
                token_ids=sequence.token_ids,
                prompt_length=sequence.prompt_length,
                texts=sequence.texts,
                logprobs=None if sequence.params.logprobs is None else [],
            )
            for sequence in self.sequences
        ]

    @cached_property
    def _told(self) -> list[int]:
        """How many tokens of each sequence an output has told of."""
        return [0] * len(self.sequences)

    @property
    def finished(self) -> bool:
        """Whether every sample is complete."""
        return all([sequence.finish_reason is not None for sequence in self.sequences])

    def news(self) -> RequestOutput | None:
        """What there is to tell after a step, as `params.output_kind` says; None for nothing yet."""
        kind = self.params.output_kind
        if kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        if kind is not RequestOutputKind.DELTA:
            return self.output()
        output = self.output(self._told)
        self._told[:] = [sample.stop for sample in output.outputs]
        return output

    def output(self, starts: SequenceOf[int] | None = None) -> RequestOutput:
        """The request as it stands; of each sequence from a token on, where `starts` are given."""
        starts = [0] * len(self.sequences) if starts is None else starts
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=self._prompt_tables,
            outputs=[self._completion(i, start) for i, start in enumerate(starts)],
            finished=self.finished,
            metrics=self._metrics,
        )

    @property
    def _metrics(self) -> RequestMetrics:
        """Made anew only where a moment has come since."""
        known = self._known_metrics
        if known is None or known.first_token_time is None or self.finished:
            timings = [sequence.timings for sequence in self.sequences]
            known = self._known_metrics = RequestMetrics(
                arrival_time=min(t.arrival for t in timings),
                first_token_time=min((t.first_token for t in timings if t.first_token is not None), default=None),
                finished_time=max(t.finished or 0.0 for t in timings) if self.finished else None,
            )
        return known

    def _completion(self, index: int, start: int) -> CompletionOutput:
        sequence, transcript = self.sequences[index], self._transcripts[index]
        if transcript.logprobs is not None:
            known = len(transcript.logprobs)
            new = zip(sequence.token_ids[sequence.prompt_length + known :], sequence.logprobs[known:], strict=True)
            transcript.logprobs.extend(self._table(token, report) for token, report in new)
        return CompletionOutput(
            index=index,
            transcript=transcript,
            start=start,
            stop=len(sequence.texts),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
        )

    @property
    def prompt_scored(self) -> bool:
        """Whether all that was asked of the prompt itself is there."""
        first = self.sequences[0]
        return first.score_from is None or first.scored >= len(self.prompt_token_ids) - 1

    @cached_property
    def _prompt_tables(self) -> list[LogprobsByToken | None] | None:
        first = self.sequences[0]
        if first.score_from is None:
            return None
        if not first.scores:
            return [None]
        scored = PositionLogprobs.concatenate(first.scores)
        rows = zip(
            scored.token.tolist(), scored.rank.tolist(), scored.top_ids.tolist(), scored.top.tolist(), strict=True
        )
        tables: list[LogprobsByToken | None] = [None]
        for token_id, (logprob, rank, top_ids, top) in zip(self.prompt_token_ids[1:], rows, strict=True):
            report = TokenLogprobs(token=logprob, rank=rank, top_ids=tuple(top_ids), top=tuple(top))
            tables.append(self._table(token_id, report))
        return tables

    def _table(self, token: int, report: TokenLogprobs) -> LogprobsByToken:
        """The chosen token first, then the top ones by rank."""
        table = {token: self._entry(token, report.token, report.rank)}
        for rank, (other, logprob) in enumerate(zip(report.top_ids, report.top, strict=True), start=1):
            table.setdefault(other, self._entry(other, logprob, rank))
        return table

    def _entry(self, token: int, logprob: float, rank: int) -> Logprob:
        text = self.tokenizer.decode([token]) if self.tokenizer else None
        return Logprob(logprob=logprob, rank=rank, decoded_token=text)


class RequestFactory:
    """Turns what callers pass into requests, and refuses what the model cannot take."""

    def __init__(self, tokenizer: Tokenizer | None, *, vocab_size: int, max_model_len: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.max_model_len = max_model_len
        self._seed = seed
        self._counter = count()
        self._compiler: GrammarCompiler | None = None
        self._lock = Lock()

    def encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The prompt's text, where it has one, and its token ids. ValueError for what does not fit the model."""
        text, ids = self.tokenise(prompt)
        if not ids:
            raise ValueError("the prompt is empty and the model adds no token of its own; give it some text")
        if len(ids) > self.max_model_len:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, but max_model_len is {self.max_model_len}; shorten it or raise "
                "max_model_len"
            )
        return text, ids

    def tokenise(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The same for a prompt of any length, none included. ValueError for tokens that the model does not have."""
        fields: Any = {"prompt": prompt} if isinstance(prompt, str) else prompt
        if not isinstance(fields, Mapping) or fields.keys().isdisjoint(("prompt", "prompt_token_ids")):
            raise TypeError(f'a prompt must be a text or {{"prompt_token_ids": [...]}}, got {prompt!r}')
        text = fields.get("prompt")
        if "prompt_token_ids" in fields:
            ids = [index(token) for token in fields["prompt_token_ids"]]
        else:
            ids = self._require_tokenizer().encode(fields["prompt"])
        wrong = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise ValueError(f"prompt_token_ids must lie in [0, {self._vocab_size}), got {wrong}")
        return text, ids

    def chat_prompt(self, messages: SequenceOf[Mapping[str, Any]], **options: Any) -> Prompt:
        """A conversation as the prompt that the file's chat template makes of it."""
        tokenizer = self._require_tokenizer()
        if tokenizer.chat_template is None:
            raise ValueError("this file has no chat template; use generate with a prompt of your own")
        text = tokenizer.chat_template.render([dict(message) for message in messages], **options)
        bos = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])
        # Templates usually write the begin token themselves.
        ids = tokenizer.encode(text, add_special=not (bos and text.startswith(bos)))
        return {"prompt": text, "prompt_token_ids": ids}

    def make(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, edit_id: int = 0
    ) -> Request:
        """A request with its sequences, ready for the engine. Its id is a number of its own where none is given.

        `edit_id`: whose of the engine's edits concern it (`Taps.of_each`).
        """
        params.check_vocabulary(self._vocab_size)
        text, ids = self.encode(prompt)
        room = self.max_model_len - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt fills max_model_len = {self.max_model_len} and leaves no room for an output; shorten it"
            )
        if params.stop_strings:
            self._require_tokenizer()
        number = next(self._counter)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        common: Any = {"salt": _salt(prompt, edit_id), "edit_id": edit_id}
        first = self._sequence(ids, params, limit, self._seed_for(params, (number, 0)), **common)
        if params.prompt_logprobs is not None:
            first.score_from = 0
        shares = (first, len(ids) - 1) if len(ids) > 1 else None
        others = (
            self._sequence(ids, params, limit, self._seed_for(params, (number, i)), shares=shares, **common)
            for i in range(1, params.n)
        )
        return Request(
            request_id=str(number) if request_id is None else request_id,
            prompt=text,
            prompt_token_ids=ids,
            params=params,
            sequences=[first, *others],
            tokenizer=self._tokenizer,
        )

    def _sequence(
        self,
        ids: list[int],
        params: SamplingParams,
        limit: int,
        seed: int,
        *,
        salt: bytes,
        edit_id: int,
        shares: tuple[Sequence, int] | None = None,
    ) -> Sequence:
        tokenizer = self._tokenizer
        end_ids = tokenizer.end_ids if tokenizer else frozenset()
        return Sequence(
            sampling=SamplingRequest(
                params=params, seed=seed, prompt_length=len(ids), token_ids=token_array(ids), end_ids=end_ids
            ),
            max_tokens=limit,
            stop=StopChecker(params, end_ids=end_ids, max_tokens=limit),
            detokenizer=tokenizer.detokenizer(skip_special=params.skip_special_tokens) if tokenizer else None,
            grammar=self._grammar(params),
            salt=salt,
            shares=shares,
            edit_id=edit_id,
        )

    def _grammar(self, params: SamplingParams) -> GrammarState | None:
        if params.structured_outputs is None:
            return None
        with self._lock:  # the compiler takes up to a second to make, and requests may be made on several threads
            if self._compiler is None:
                self._compiler = GrammarCompiler(self._require_tokenizer(), self._vocab_size)
        return self._compiler.start(params.structured_outputs)

    def _seed_for(self, params: SamplingParams, key: tuple[int, int]) -> int:
        """Sample i of a seeded request counts up from its seed; others derive theirs from the model's seed."""
        if params.seed is not None:
            return (params.seed + key[1]) % 2**64
        return int(np.random.SeedSequence([self._seed, *key]).generate_state(1, np.uint64)[0])

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError("this file has no tokenizer; pass prompt_token_ids instead of text, and no stop strings")
        return self._tokenizer


def _salt(prompt: Prompt, edit_id: int) -> bytes:
    """What is computed under different edits differs; no text has a byte 255, so that no salt looks like an edit."""
    salt = "" if isinstance(prompt, str) else prompt.get("cache_salt") or ""
    if not isinstance(salt, str):
        raise TypeError(f"cache_salt must be a text, got {salt!r}")
    return salt.encode() + (b"\xff%d" % edit_id if edit_id else b"")
