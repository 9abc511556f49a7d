"""How many choices may be here at once: those that are generated, and a bounded queue behind them."""

import math
from contextlib import AbstractContextManager
from types import TracebackType

from weblab_local.i18n import _
from weblab_local.server.errors import ApiError

LONGEST_RETRY = 60
"""Seconds."""


class Admission:
    """A count of the places taken. All calls come from the event loop's thread."""

    def __init__(self, n_parallel: int, queue: int) -> None:
        self._n_parallel = n_parallel
        self._room = n_parallel + queue
        self.n_taken = 0
        """Places of answers that are computed or wait."""
        self._seconds = 1.0
        """How long a request took lately, as a running mean."""

    def admit(self, n: int) -> "Places":
        """Take `n` places until they are given back. Raises ApiError 429 where there is no room for them.

        One request that wants more places than there are at all gets in when nobody else is there.
        """
        if self.n_taken and self.n_taken + n > self._room:
            message = _("{n} answers are under way or waiting; there is no room for more.").format(n=self.n_taken)
            raise self.come_again(429, message, code="queue_full")
        self.n_taken += n
        return Places(self, n)

    def give_back(self, n: int) -> None:
        """Free `n` places."""
        self.n_taken -= n

    def took(self, seconds: float) -> None:
        """Take note of how long a request took."""
        self._seconds += 0.25 * (seconds - self._seconds)

    def come_again(self, status: int, message: str, *, code: str) -> ApiError:
        """Return the error for a request that may be answered later, when the computed ones have ended.

        Its Retry-After is in whole seconds, about as many as a request takes on average.
        """
        seconds = max(1, min(LONGEST_RETRY, math.ceil(self._seconds / self._n_parallel)))
        return ApiError(status, message, code=code, headers={"Retry-After": str(seconds)})


class Places(AbstractContextManager["Places"]):
    """The places of one request. As a context manager it gives back all that are left."""

    def __init__(self, admission: Admission, n: int) -> None:
        self._admission = admission
        self.n = n
        """How many are still taken."""

    def release_one(self) -> None:
        """Give one place back, if any is left."""
        self._release(min(self.n, 1))

    def release_all(self) -> None:
        """Give back all that are left."""
        self._release(self.n)

    def _release(self, n: int) -> None:
        self.n -= n
        self._admission.give_back(n)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release_all()
