"""Requests as asynchronous streams: cancelled, timed out, refused, waiting for room, and all accounted for."""

import asyncio
import gc
import itertools
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from realm_jax import LLM, SamplingParams
from realm_jax.engine import AsyncLLMEngine, EngineBusy, EngineClosed
from realm_jax.outputs import RequestOutput
from realm_jax.sampling import RequestOutputKind

TINY = Path(__file__).parents[1] / "data" / "tiny"
LENGTH = 64


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(TINY / "llama.gguf", max_model_len=LENGTH, max_num_seqs=8, block_size=16, dtype="float32", quiet=True)


def prompt(*ids: int) -> dict[str, Any]:
    return {"prompt_token_ids": list(ids)}


def greedy(max_tokens: int = 6, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **options)


def serving(llm: LLM, body: Callable[[AsyncLLMEngine], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run `body` with an engine, and check that nothing is left of any request."""

    async def main() -> None:
        inner = llm.llm_engine()
        async with AsyncLLMEngine(inner, **options) as engine:
            await body(engine)
            assert engine.unfinished == 0
            for _ in range(200):  # aborts are on their way to the engine's thread
                if not inner.has_unfinished_requests():
                    break
                await asyncio.sleep(0.01)
            assert inner.engine.blocks.idle and not inner.has_unfinished_requests()

    asyncio.run(main())


async def collect(engine: AsyncLLMEngine, *args: Any, **options: Any) -> list[RequestOutput]:
    return [output async for output in engine.generate(*args, **options)]


def test_streams_give_what_generate_gives(llm: LLM) -> None:
    prompts = [prompt(1, 2, 3), prompt(9), prompt(*range(20))]
    expected = [out.outputs[0].token_ids for out in llm.generate(prompts, greedy(), use_tqdm=False)]

    async def body(engine: AsyncLLMEngine) -> None:
        runs = await asyncio.gather(*(collect(engine, p, greedy(), str(i)) for i, p in enumerate(prompts)))
        for outputs, tokens in zip(runs, expected, strict=True):
            assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
            assert outputs[-1].outputs[0].token_ids == tokens
            for earlier, later in itertools.pairwise(outputs):
                known = earlier.outputs[0].token_ids
                assert later.outputs[0].token_ids[: len(known)] == known

    serving(llm, body)


def test_a_slow_reader_of_deltas_misses_none(llm: LLM) -> None:
    expected = llm.generate(prompt(1, 2, 3), greedy(20), use_tqdm=False)[0].outputs[0].token_ids

    async def body(engine: AsyncLLMEngine) -> None:
        read, tokens = 0, []
        async for output in engine.generate(prompt(1, 2, 3), greedy(20, output_kind=RequestOutputKind.DELTA), "slow"):
            tokens += output.outputs[0].token_ids
            read += 1
            while engine.stats.generated_tokens < 20:  # the reader comes back when all is written
                await asyncio.sleep(0.01)
        assert tokens == expected and read < 20

    serving(llm, body)


def test_what_cannot_be_served_is_refused_at_once(llm: LLM) -> None:
    async def body(engine: AsyncLLMEngine) -> None:
        with pytest.raises(ValueError, match="the prompt has 70 tokens, but max_model_len is 64"):
            await collect(engine, prompt(*[1] * 70), greedy(), "long")
        first = engine.generate(prompt(1), greedy(30), "name")
        await anext(first)
        with pytest.raises(ValueError, match="request_id 'name' is in use"):
            await collect(engine, prompt(1), greedy(), "name")
        await first.aclose()

    serving(llm, body)


def test_a_deadline_ends_a_request(llm: LLM) -> None:
    async def body(engine: AsyncLLMEngine) -> None:
        with pytest.raises(TimeoutError):
            await collect(engine, prompt(1), greedy(40), "late", timeout=0.0)
        assert len(await collect(engine, prompt(1), greedy(), "next", timeout=60.0)) >= 1

    serving(llm, body)


def test_requests_wait_for_room_or_are_told(llm: LLM) -> None:
    async def body(engine: AsyncLLMEngine) -> None:
        first = engine.generate(prompt(1), greedy(30), "first")
        await anext(first)
        with pytest.raises(EngineBusy, match="1 requests are unfinished"):
            await collect(engine, prompt(2), greedy(), "second", wait=False)
        waiting = asyncio.create_task(collect(engine, prompt(2), greedy(), "third"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await first.aclose()
        assert (await waiting)[-1].finished

    serving(llm, body, max_requests=1)


def test_an_error_on_the_device_reaches_every_stream_and_the_engine_goes_on(llm: LLM) -> None:
    def broken(history: Any, logits: Any) -> Any:
        raise ArithmeticError("a processor that fails")

    async def body(engine: AsyncLLMEngine) -> None:
        tasks = [collect(engine, prompt(i), greedy(40), f"good{i}") for i in range(2)]
        tasks.append(collect(engine, prompt(1), greedy(5, logits_processors=[broken]), "bad"))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ArithmeticError)
        assert (await collect(engine, prompt(1), greedy(), "after"))[-1].finished

    serving(llm, body)


def test_closing_ends_what_runs(llm: LLM) -> None:
    async def cut() -> bool:
        """Whether a request that had begun was ended by closing; on a busy machine it may end by itself before."""
        inner = llm.llm_engine()
        engine = AsyncLLMEngine(inner)
        stream = engine.generate(prompt(1), greedy(50), "cut")
        last = await anext(stream)
        queued = [asyncio.create_task(collect(engine, prompt(1), greedy(50), f"queued{i}")) for i in range(100)]
        await asyncio.sleep(0)  # let them come to the queue
        await engine.close()
        ends = await asyncio.gather(*queued, return_exceptions=True)
        assert isinstance(ends[-1], EngineClosed)  # a hundred cannot come to their ends
        with pytest.raises(EngineClosed, match="the engine is closed; make a new one"):
            await collect(engine, prompt(1), greedy(), "late")
        assert inner.engine.blocks.idle
        try:
            async for output in stream:
                last = output
        except EngineClosed:
            return True
        assert last.finished
        return False

    assert any(asyncio.run(cut()) for _ in range(20))


async def one(engine: AsyncLLMEngine, draw: random.Random, number: int) -> str:
    """A request of some kind, and how it ended."""
    kind = draw.choices(("whole", "cancelled", "timeout", "oversized", "several"), (60, 15, 10, 5, 10))[0]
    ids = draw.choices(range(128), k=70 if kind == "oversized" else draw.randint(1, 40))
    options: dict[str, Any] = {"temperature": 0.9, "n": draw.randint(2, 4)} if kind == "several" else {}
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": draw.randint(1, 20), **options})
    stream = engine.generate(
        {"prompt_token_ids": ids}, params, str(number), timeout=draw.uniform(0, 0.2) if kind == "timeout" else None
    )
    try:
        if kind == "cancelled":
            for _ in range(draw.randint(0, 3)):
                await anext(stream, None)
            await stream.aclose()
            return "cancelled"
        outputs = [output async for output in stream]
        assert outputs[-1].finished and len(outputs[-1].outputs) == params.n
        return "finished"
    except TimeoutError:
        return "timeout"
    except ValueError:
        assert kind == "oversized"
        return "refused"


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_requests_are_all_accounted_for(llm: LLM, count: int) -> None:
    """Random aborts, timeouts, oversized prompts and several samples; memory does not grow with their number."""
    draw = random.Random(5)

    async def body(engine: AsyncLLMEngine) -> None:
        gate = asyncio.Semaphore(64)

        async def gated(number: int) -> str:
            async with gate:
                return await one(engine, draw, number)

        ends = Counter(await asyncio.gather(*map(gated, range(count))))
        assert sum(ends.values()) == count
        assert ends["finished"] > count // 2 and ends["cancelled"] > count // 20 and ends["refused"] > count // 50
        tracemalloc.start()
        growth = []
        before = compiled = 0
        for first in range(count, 20 * count, 50):
            await asyncio.gather(*map(gated, range(first, first + 50)))
            gc.collect()
            now = tracemalloc.get_traced_memory()[0]
            if llm.runner.compilations == compiled:  # a program takes memory of its own, and stays
                growth.append(now - before)
            before, compiled = now, llm.runner.compilations
            if len(growth) == 10:
                break
        tracemalloc.stop()
        # Pools and tables of the interpreter grow and shrink by up to 20 KB; what leaks, leaks in every round.
        assert len(growth) == 10 and sum(growth) < 10 * 5_000, growth

    start = time.monotonic()
    serving(llm, body, max_requests=48)
    print(f"{count} requests in {time.monotonic() - start:.1f} s")
