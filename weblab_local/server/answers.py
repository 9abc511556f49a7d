"""The answers to one request: several generations of the engine as one stream of events, bounded in time.

Closing the stream, by a client that goes away or by an error, cancels them all.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from weblab_local.engine import Engine
from weblab_local.generation import AsyncGeneration, Chunk
from weblab_local.sampling import SamplingParams


@dataclass(frozen=True)
class Question:
    """A prompt as ids, and how one answer to it is to be sampled. `raw`: nothing of the model's template ends it."""

    ids: Sequence[int]
    params: SamplingParams
    raw: bool
    n_logprobs: int | None


@dataclass(frozen=True)
class Piece:
    """A chunk of the answer with that index. `timed_out`: it is the last one because the time was up."""

    index: int
    chunk: Chunk
    timed_out: bool = False


@dataclass(frozen=True)
class Reading:
    """How many tokens of the first question are read."""

    done: int
    total: int


Event = Piece | Reading


async def answer(
    engine: Engine, questions: Sequence[Question], seconds: float, *, progress: bool
) -> AsyncGenerator[Event, None]:
    """The events of all answers as they come, each answer's last chunk with a finish reason.

    After `seconds` those that are still under way end where they are. Raises what the engine raises.
    """
    events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_progress(done: int, total: int) -> None:
        loop.call_soon_threadsafe(events.put_nowait, Reading(done, total))

    generations: list[AsyncGeneration] = []
    pumps: list[asyncio.Task[None]] = []
    timed_out = False

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        for generation in generations:
            generation.cancel()

    async def pump(index: int, generation: AsyncGeneration) -> None:
        try:
            async for chunk in generation:
                events.put_nowait(Piece(index, chunk, timed_out and chunk.finish_reason == "cancelled"))
        except Exception as error:
            events.put_nowait(error)

    timer = loop.call_later(seconds, time_is_up)
    try:
        for index, question in enumerate(questions):
            generation = engine.astream(
                question.ids,
                question.params,
                raw=question.raw,
                logprobs=question.n_logprobs,
                on_progress=on_progress if progress and index == 0 else None,
            )
            generations.append(generation)
            pumps.append(asyncio.create_task(pump(index, generation)))
        running = len(questions)
        while running:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            running -= isinstance(event, Piece) and event.chunk.finish_reason is not None
            yield event
    finally:
        timer.cancel()
        for generation in generations:
            await generation.aclose()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
