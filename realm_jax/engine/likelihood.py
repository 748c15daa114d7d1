"""Likelihood: the log-probabilities of given continuations, any number of them, through the engine's batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from itertools import islice
from numbers import Integral
from typing import Any

from realm_jax.engine.engine import Engine
from realm_jax.engine.request import Prompt, RequestFactory
from realm_jax.engine.sequence import PositionLogprobs, Sequence, token_array
from realm_jax.outputs import ScoreOutput
from realm_jax.sampling import SamplingParams, SamplingRequest, StopChecker
from realm_jax.tokenizer import Tokenizer

Continuation = str | SequenceOf[int]

_QUEUED = 4  # sequences that wait for every one that runs: enough to fill each step
_CONTEXTS = 64  # prompts whose tokens are kept
_SCORING = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Tokens to be scored, after at least one token of context; `dropped` more came before it and did not fit."""

    context: list[int]
    continuation: list[int]
    dropped: int = 0

    def fitted(self, max_model_len: int, *, truncate: bool) -> Pair:
        """The pair within the model's context, of which the last token needs no position.

        What is too long loses tokens at the left of its context if `truncate`, else is a ValueError.
        """
        most = max_model_len + 1 - len(self.continuation)
        if most < 1:
            raise ValueError(
                f"a continuation must have at most max_model_len = {max_model_len} tokens, got "
                f"{len(self.continuation)}; shorten it or raise max_model_len"
            )
        if len(self.context) <= most:
            return self
        if not truncate:
            raise ValueError(
                f"a prompt of {len(self.context)} tokens and a continuation of {len(self.continuation)} do not fit "
                f"max_model_len = {max_model_len}; shorten the prompt, raise max_model_len or pass truncate=True"
            )
        return dataclasses.replace(self, context=self.context[-most:], dropped=len(self.context) - most)


class PairEncoder:
    """Texts as the tokens that lm-evaluation-harness makes of them."""

    def __init__(self, tokenizer: Tokenizer | None, requests: RequestFactory) -> None:
        self._tokenizer = tokenizer
        self._requests = requests
        self._contexts: dict[str, list[int]] = {}

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text that nothing precedes: the begin token, else the end token."""
        tokenizer = self._tokenizer
        prefix = None if tokenizer is None else tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if prefix is None:
            raise ValueError("an empty prompt needs a begin or end token, and the file names none; give it a token")
        return prefix

    def text(self, text: str, *, add_begin: bool | None = None) -> list[int]:
        """The tokens of a text, with the begin token if the model wants one and the text does not have it."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ValueError("this file has no tokenizer; pass token ids instead of text")
        ids, bos = tokenizer.encode(text, add_special=False), tokenizer.bos_id
        wanted = tokenizer.add_bos and ids[:1] != [bos] if add_begin is None else add_begin
        return [bos, *ids] if wanted and bos is not None else ids

    def pairs(
        self, prompts: Prompt | SequenceOf[Prompt], continuations: Continuation | SequenceOf[Continuation]
    ) -> list[Pair]:
        """Each prompt with its continuation, or one prompt with each of several."""
        wanted: Any = [continuations] if _is_one(continuations) else continuations
        listed = [prompts] * len(wanted) if isinstance(prompts, str | Mapping) else prompts
        if len(listed) != len(wanted):
            raise ValueError(f"there must be a continuation for each of {len(listed)} prompts, got {len(wanted)}")
        return [self.pair(prompt, continuation) for prompt, continuation in zip(listed, wanted, strict=True)]

    def pair(self, prompt: Prompt, continuation: Continuation) -> Pair:
        """A prompt and what follows it.

        Of two texts the spaces at the end of the prompt belong to the continuation, and the tokens are those of both
        together, from where the prompt's own tokens end. ValueError where that leaves the continuation none.
        """
        text = prompt if isinstance(prompt, str) else prompt.get("prompt") if "prompt_token_ids" not in prompt else None
        if text is not None and isinstance(continuation, str):
            context, ids = self._texts(text, continuation)
        else:
            context = self.text(text) if text is not None else self._requests.tokenise(prompt)[1]
            ids = self._ids(continuation)
        if not ids:
            raise ValueError(f"a continuation must add at least one token to its prompt, got {continuation!r}")
        return Pair(context=context or [self.prefix_token_id], continuation=ids)

    def _texts(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        bare = prompt.rstrip()
        if not bare:
            ids, prefix = self.text(prompt + continuation, add_begin=False), self.prefix_token_id
            return [prefix], ids[1:] if ids[:1] == [prefix] else ids
        context = self._context(bare)
        return context, self.text(prompt + continuation)[len(context) :]

    def _context(self, text: str) -> list[int]:
        """The tokens of a prompt; one list for the continuations of a prompt that follow each other."""
        if text not in self._contexts:
            if len(self._contexts) == _CONTEXTS:
                self._contexts.clear()
            self._contexts[text] = self.text(text)
        return self._contexts[text]

    def _ids(self, continuation: Continuation) -> list[int]:
        if isinstance(continuation, str):
            return self.text(continuation, add_begin=False)
        return self._requests.tokenise({"prompt_token_ids": continuation})[1]


def _is_one(value: Any) -> bool:
    """Whether this is one continuation, a text or token ids, rather than several."""
    return isinstance(value, str) or (len(value) > 0 and isinstance(value[0], Integral))


def score_pairs(
    engine: Engine, pairs: SequenceOf[Pair], done: Callable[[], object] = lambda: None
) -> list[ScoreOutput]:
    """Score all pairs, on an engine without other work; calls `done` as each has its score.

    Pairs of one context compute it once, and contexts that begin alike follow each other, so that the cache of
    prefixes still has what they share.
    """
    groups: dict[bytes, list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(token_array(pair.context).tobytes(), []).append(number)
    numbers: dict[Sequence, int] = {}
    scores: dict[int, ScoreOutput] = {}
    for sequence in run(engine, _sequences(pairs, [groups[context] for context in sorted(groups)], numbers)):
        number = numbers.pop(sequence)
        scores[number] = _output(pairs[number], sequence)
        done()
    return [scores[number] for number in range(len(pairs))]


def run(engine: Engine, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Compute sequences, which are made as there is room for them, and yield each when it has finished."""
    coming = iter(sequences)
    most = _QUEUED * engine.config.max_num_seqs
    try:
        while True:
            for sequence in islice(coming, most - len(engine.scheduler.waiting)):
                engine.add(sequence)
            if not engine.has_work:
                return
            yield from [sequence for sequence in engine.step() if sequence.finished]
    finally:
        engine.abort([*engine.scheduler.running, *engine.scheduler.waiting])


def _sequences(
    pairs: SequenceOf[Pair], groups: Iterable[list[int]], numbers: dict[Sequence, int]
) -> Iterator[Sequence]:
    """The sequences of groups of pairs that have one context; `numbers` tells of which pair each is."""
    for group in groups:
        first: Sequence | None = None
        for number in group:
            if first is not None and first.finished:
                first = None  # it has given its blocks back; the cache of prefixes still has the full ones
            sequence = _sequence(pairs[number], first)
            numbers[sequence] = number
            first = first or sequence
            yield sequence


def _sequence(pair: Pair, first: Sequence | None) -> Sequence:
    ids, before = [*pair.context, *pair.continuation], len(pair.context) - 1
    return Sequence(
        sampling=SamplingRequest(params=_SCORING, seed=0, prompt_length=len(ids), token_ids=token_array(ids)),
        max_tokens=0,
        stop=StopChecker(_SCORING),
        detokenizer=None,
        score_from=before,
        shares=(first, before) if first is not None and before else None,
    )


def _output(pair: Pair, sequence: Sequence) -> ScoreOutput:
    scored = PositionLogprobs.concatenate(sequence.scores)
    ranks, logprobs = scored.rank.tolist(), scored.token.tolist()
    return ScoreOutput(
        logprob=sum(logprobs),
        is_greedy=all(rank == 1 for rank in ranks),
        token_ids=pair.continuation,
        token_logprobs=logprobs,
        ranks=ranks,
        num_prompt_tokens=len(pair.context),
        num_dropped_tokens=pair.dropped,
    )
