"""`weblab-local` with streams that are otherwise timed: `python -m tests.clients.altered HOW serve ...`.

commented: before each event comes what is otherwise sent after ten seconds without one.
held: a stream goes no further than its tenth event while there is the file that WEBLAB_TEST_HOLD names.
"""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

from starlette.types import Send

from weblab_local.cli import main
from weblab_local.server.connection import EventStream

EVENTS = 10

_send = EventStream._send
_sent: Counter[EventStream] = Counter()


async def commented(stream: EventStream, send: Send, data: bytes) -> None:
    """Send a comment first."""
    if stream.SILENT:
        await _send(stream, send, stream.SILENT)
    await _send(stream, send, data)


async def held(stream: EventStream, send: Send, data: bytes) -> None:
    """Send it when it may be sent."""
    _sent[stream] += 1
    while _sent[stream] > EVENTS and Path(os.environ["WEBLAB_TEST_HOLD"]).exists():
        await asyncio.sleep(0.01)
    await _send(stream, send, data)


setattr(EventStream, "_send", {"commented": commented, "held": held}[sys.argv.pop(1)])  # noqa: B010
main()
