"""The choices of one completion: several generations of the engine as one stream of events, bounded in time.

Closing the stream, because the client left or something failed, cancels them all.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from weblab_local.engine.engine import Engine
from weblab_local.engine.generation import AsyncGeneration, Chunk
from weblab_local.engine.options import PromptProgress
from weblab_local.engine.sampling import SamplingParams
from weblab_local.server.echo import Echo


@dataclass(frozen=True)
class Choice:
    """What one choice is generated from. `raw`: the template's own stop texts do not end it.

    `echo`: the prompt comes first, and with log-probabilities of its own; then `params` may be None, and nothing else
    comes.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams | None
    raw: bool
    n_logprobs: int | None
    echo: bool = False


@dataclass(frozen=True)
class ChoiceChunk:
    """A chunk of the choice with that index. `timed_out`: it is the last one because the time was up."""

    index: int
    chunk: Chunk
    timed_out: bool = False


@dataclass(frozen=True)
class PrefillProgress:
    """How many tokens of the first choice's prompt have been read."""

    done: int
    total: int


ChoiceEvent = ChoiceChunk | PrefillProgress


async def run_choices(
    engine: Engine,
    choices: Sequence[Choice],
    seconds: float,
    *,
    progress: bool,
    on_generated: Callable[[], None],
) -> AsyncGenerator[ChoiceEvent, None]:
    """Generate all choices, and yield their events as they come; each choice's last chunk has a finish reason.

    A choice that was computed for `seconds` is ended where it is; waiting for its turn does not count. Raises
    TimeoutError where after so long none has begun, or one has no token yet, since an answer of nothing is none.
    `on_generated` is called once for each choice when the engine is done with it, however late its events are read.
    Raises what the engine raises.
    """
    events: asyncio.Queue[ChoiceEvent | BaseException] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_progress(done: int, total: int) -> None:
        loop.call_soon_threadsafe(events.put_nowait, PrefillProgress(done, total))

    generations: list[AsyncGeneration | Echo] = []
    pumps: list[asyncio.Task[None]] = []
    waiting = loop.call_later(seconds, events.put_nowait, TimeoutError())

    async def end_in_time(generation: AsyncGeneration | Echo) -> None:
        await generation.begun.wait()
        waiting.cancel()
        await asyncio.sleep(seconds)
        generation.cancel()

    def begin(choice: Choice, on_progress: PromptProgress | None) -> AsyncGeneration | Echo:
        if choice.echo:
            return Echo(engine, choice.prompt_ids, choice.params, choice.n_logprobs)
        return engine.astream(
            choice.prompt_ids, choice.params, raw=choice.raw, logprobs=choice.n_logprobs, on_progress=on_progress
        )

    async def pump(index: int, generation: AsyncGeneration | Echo) -> None:
        timer = asyncio.create_task(end_in_time(generation))
        n_tokens = 0
        try:
            async for chunk in generation:
                n_tokens += len(chunk.token_ids)
                timed_out = chunk.finish_reason == "cancelled"  # nobody else cancels what is still read here
                if timed_out and not n_tokens:
                    raise TimeoutError
                events.put_nowait(ChoiceChunk(index, chunk, timed_out))
        except Exception as error:
            events.put_nowait(error)
        finally:
            timer.cancel()
            on_generated()

    try:
        for index, choice in enumerate(choices):
            generation = begin(choice, on_progress if progress and index == 0 else None)
            generations.append(generation)
            pumps.append(asyncio.create_task(pump(index, generation)))
        running = len(choices)
        while running:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            running -= isinstance(event, ChoiceChunk) and event.chunk.finish_reason is not None
            yield event
    finally:
        waiting.cancel()
        for generation in generations:
            await generation.aclose()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
