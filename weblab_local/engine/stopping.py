"""Stop strings in streamed text."""

from collections.abc import Sequence

from weblab_local.engine.prompt import INSTRUCTION

NEXT_INSTRUCTION = INSTRUCTION.strip("\n")
TURN_STOPS = tuple("\n" * n + NEXT_INSTRUCTION for n in (2, 1, 0))
"""The model begins another instruction of its own: the answer ended before, and before the line breaks there."""


class StopFilter:
    """Text goes in piece by piece and comes out up to a stop string, which never comes out.

    What could be the beginning of a stop string is held back until it is known not to be one. The stop string that is
    complete first wins, and of several that end together the longest, however the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What can come out now, and whether a stop string was found (then nothing may follow)."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, False
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and was no stop string after all."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
