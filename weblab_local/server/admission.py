"""How many requests may be here at once: those that are computed, and a bounded queue behind them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from weblab_local.i18n import _
from weblab_local.server.errors import ApiError

LONGEST_RETRY = 60
"""Seconds."""


class Admission:
    """A count of answers under way. All calls come from the event loop's thread."""

    def __init__(self, n_parallel: int, queue: int) -> None:
        self._n_parallel = n_parallel
        self._room = n_parallel + queue
        self._under_way = 0
        self._seconds = 1.0
        """How long an answer took lately, as a running mean."""

    @contextmanager
    def admit(self, n: int) -> Iterator[None]:
        """Count `n` answers for as long as the context lasts. Raises ApiError 429 where there is no room for them.

        One request that wants more answers than there are places at all gets in when nobody else is there.
        """
        if self._under_way and self._under_way + n > self._room:
            raise ApiError(
                429,
                _("{n} answers are under way or waiting; there is no room for more.").format(n=self._under_way),
                code="queue_full",
                headers={"Retry-After": str(self._retry_after())},
            )
        self._under_way += n
        try:
            yield
        finally:
            self._under_way -= n

    def took(self, seconds: float) -> None:
        """Take note of how long an answer took."""
        self._seconds += 0.25 * (seconds - self._seconds)

    def _retry_after(self) -> int:
        """Whole seconds until a place may be free: about as long as the computed answers take on average."""
        return max(1, min(LONGEST_RETRY, math.ceil(self._seconds / self._n_parallel)))
