"""LLMEngine: requests in, outputs out, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from realm_jax.engine.engine import Engine
from realm_jax.engine.request import Prompt, Request, RequestFactory
from realm_jax.engine.sequence import Sequence
from realm_jax.engine.stats import EngineStats
from realm_jax.outputs import RequestOutput
from realm_jax.sampling import SamplingParams, plan_for


class LLMEngine:
    """Serves requests that come and go, after vLLM's class of this name.

    The caller adds requests, calls `step` while there are unfinished ones, and takes the outputs that it returns: of
    each request what its `output_kind` asks for.
    """

    def __init__(self, engine: Engine, requests: RequestFactory) -> None:
        self.engine = engine
        self._factory = requests
        self._requests: dict[str, Request] = {}
        self._owner: dict[Sequence, Request] = {}

    @property
    def stats(self) -> EngineStats:
        """Counters since the engine was made."""
        return self.engine.stats

    def warm_up(self, sampling_params: SamplingParams | SequenceOf[SamplingParams] = ()) -> None:
        """Compile all programs that requests with these parameters need, together or apart, several at a time.

        From then on such requests never wait for a compiler. Without parameters: greedy ones and the default's.
        ValueError for parameters whose programs depend on the requests: penalties, biases, processors, grammars.
        """
        listed = [sampling_params] if isinstance(sampling_params, SamplingParams) else sampling_params
        listed = listed or [SamplingParams(), SamplingParams(temperature=0)]
        self.engine.compile_steps(dict.fromkeys(map(plan_for, (*([params] for params in listed), listed))))

    def make_request(self, prompt: Prompt, params: SamplingParams, request_id: str | None = None) -> Request:
        """Check and tokenise a request without queueing it. ValueError or TypeError says what is wrong with it."""
        return self._factory.make(prompt, params, request_id=request_id)

    def chat_prompt(self, messages: SequenceOf[Mapping[str, Any]], **options: Any) -> Prompt:
        """A conversation as a prompt; `options` go to the file's chat template."""
        return self._factory.chat_prompt(messages, **options)

    def add_request(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """Queue a request. ValueError for what the model cannot take, or an id that is in use."""
        self.add(self.make_request(prompt, params, request_id))

    def add(self, request: Request) -> None:
        """Queue a request that was made before."""
        if request.request_id in self._requests:
            raise ValueError(f"request_id {request.request_id!r} is in use; choose another or wait until it has ended")
        added: list[Sequence] = []
        try:
            for sequence in request.sequences:
                self.engine.add(sequence)
                added.append(sequence)
        except ValueError:
            self.engine.abort(added)
            raise
        self._requests[request.request_id] = request
        self._owner.update(dict.fromkeys(request.sequences, request))

    def abort(self, request_ids: str | Iterable[str]) -> list[RequestOutput]:
        """End requests now and return what they have; ids of none that is unfinished are ignored."""
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        requests = [self._requests[one] for one in ids if one in self._requests]
        for request in requests:
            self.engine.abort([sequence for sequence in request.sequences if not sequence.finished])
            self._forget(request)
        return [output for request in requests if (output := request.news())]

    def abort_all(self) -> list[RequestOutput]:
        """End all requests now and return what they have."""
        return self.abort(list(self._requests))

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._requests)

    def get_num_unfinished_requests(self) -> int:
        """How many requests are queued or running."""
        return len(self._requests)

    def step(self) -> list[RequestOutput]:
        """Run the engine until some request has come further; returns what there is to tell of those that have.

        An error of the device ends every request, with finish reason "abort", and is raised.
        """
        try:
            stepped = self.engine.step()
        except BaseException:
            self._requests.clear()
            self._owner.clear()
            raise
        outputs = []
        for request in dict.fromkeys(self._owner[sequence] for sequence in stepped):
            if output := request.news():
                outputs.append(output)
            if request.finished:
                self._forget(request)
        return outputs

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        for sequence in request.sequences:
            del self._owner[sequence]
