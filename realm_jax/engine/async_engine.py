"""AsyncLLMEngine: an LLMEngine on a thread of its own, and its requests as asynchronous streams."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Self

from realm_jax.engine.llm_engine import LLMEngine
from realm_jax.engine.request import Prompt, Request
from realm_jax.engine.stats import EngineStats
from realm_jax.outputs import RequestOutput
from realm_jax.sampling import RequestOutputKind, SamplingParams


class EngineBusy(RuntimeError):
    """As many requests as the engine takes are unfinished, and the caller did not want to wait."""


class EngineClosed(RuntimeError):
    """The engine was closed; it takes no requests, and those that it had have ended."""


class _Stream:
    """The newest output of one request, on its way to whoever reads it. Used in the event loop alone.

    A stream holds one output at most. A reader who is slow misses nothing: outputs are cumulative, or are joined where
    they are `deltas`.
    """

    def __init__(self, *, deltas: bool) -> None:
        self._deltas = deltas
        self._latest: RequestOutput | Exception | None = None
        self._arrived = asyncio.Event()

    def put(self, output: RequestOutput | Exception) -> None:
        unread = self._latest if self._deltas and self._arrived.is_set() else None
        if isinstance(unread, RequestOutput) and isinstance(output, RequestOutput):
            output = output.joined(unread)
        self._latest = output
        self._arrived.set()

    async def get(self) -> RequestOutput:
        await self._arrived.wait()
        self._arrived.clear()
        latest = self._latest
        if latest is None or isinstance(latest, Exception):
            raise latest or RuntimeError("a stream was woken with nothing in it")
        return latest


class AsyncLLMEngine:
    """Serves requests of many tasks of one event loop.

    Use it as an asynchronous context manager, or call `close`. All methods belong to the event loop it was made in.
    """

    def __init__(self, engine: LLMEngine, *, max_requests: int = 1024) -> None:
        """Start the engine's thread. `max_requests` unfinished ones are held; others wait in their own tasks."""
        if max_requests < 1:
            raise ValueError(f"max_requests must be at least 1, got {max_requests}")
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(max_requests)
        self._max_requests = max_requests
        self._streams: dict[str, _Stream] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def stats(self) -> EngineStats:
        """Counters since the engine was made; they go on while it runs."""
        return self._engine.stats

    @property
    def unfinished(self) -> int:
        """Requests that were taken and have not ended."""
        return len(self._streams)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        timeout: float | None = None,
        wait: bool = True,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the request's output whenever it has grown, the last time finished; `output_kind` says what it tells.

        Closing the generator, cancelling its task or running out of time (`timeout` seconds in all) aborts the request.

        Raises:
            ValueError, TypeError: the request is not one that the model can serve, or its id is in use.
            EngineBusy: there is no room and `wait` is False.
            TimeoutError: the time is over.
            EngineClosed: the engine was closed.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        if not wait and self._room.locked():
            raise EngineBusy(f"{self._max_requests} requests are unfinished; try again later")
        async with asyncio.timeout_at(deadline):
            await self._room.acquire()
        try:
            async with asyncio.timeout_at(deadline):
                # Tokenising a long text takes milliseconds, which other streams shall not wait for.
                request = await asyncio.to_thread(self._engine.make_request, prompt, sampling_params, request_id)
            stream = self._open(request)
            output = None
            try:
                while output is None or not output.finished:
                    async with asyncio.timeout_at(deadline):
                        output = await stream.get()
                    yield output
            finally:
                del self._streams[request_id]
                if output is None or not output.finished:
                    self._send(lambda: self._abort(request_id))
        finally:
            self._room.release()

    async def close(self) -> None:
        """End all requests and the thread; streams that are read get EngineClosed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._fail(EngineClosed("the engine was closed while the request ran"))

    def _open(self, request: Request) -> _Stream:
        if self._closed:
            raise EngineClosed("the engine is closed; make a new one")
        name = request.request_id
        if name in self._streams:
            raise ValueError(f"request_id {name!r} is in use; choose another or wait until it has ended")
        deltas = request.params.output_kind is RequestOutputKind.DELTA
        stream = self._streams[name] = _Stream(deltas=deltas)
        self._send(lambda: self._add(request))
        return stream

    def _send(self, command: Callable[[], None]) -> None:
        """Have the engine's thread do something between two steps."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # What follows runs on the engine's thread.

    def _work(self) -> None:
        while not self._closed:
            with self._wake:
                while not (self._commands or self._closed or self._engine.has_unfinished_requests()):
                    self._wake.wait()
                commands = [self._commands.popleft() for _ in range(len(self._commands))]
            for command in commands:
                command()
            if self._engine.has_unfinished_requests():
                self._step()
        self._engine.abort_all()

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:
            failure = error  # the name in the clause ends with it
            self._deliver(lambda: self._fail(failure))
        else:
            if outputs:
                self._deliver(lambda: self._hand_out(outputs))

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except ValueError as error:
            refused, name = error, request.request_id
            self._deliver(lambda: self._streams[name].put(refused) if name in self._streams else None)

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def _deliver(self, call: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    # What follows runs in the event loop again.

    def _hand_out(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if stream := self._streams.get(output.request_id):
                stream.put(output)

    def _fail(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.put(error)
