"""Which process something belongs to: a forked child has the memory of its parent, but none of its threads.

A lock that another thread held while the process forked stays locked in the child for ever, and graphics cards and RPC
workers know one process only. So in a child what belongs to a model of the parent waits for nothing and frees nothing.
"""

import os
import threading

from weblab_local.errors import ForkedError
from weblab_local.i18n import _

_n_forks = 0
"""How many forks this process is away from the one that imported this module."""


def _count_fork() -> None:
    global _n_forks
    _n_forks += 1


if hasattr(os, "register_at_fork"):  # Windows has neither
    os.register_at_fork(after_in_child=_count_fork)


class Home:
    """The process that made this object."""

    def __init__(self) -> None:
        self._n_forks = _n_forks

    def is_here(self) -> bool:
        """Whether it is this process, and not one that this was forked from."""
        return self._n_forks == _n_forks

    def require(self) -> None:
        """Raise ForkedError where it is another process."""
        if not self.is_here():
            raise forked_error()


class Condition(threading.Condition):
    """A condition that raises ForkedError where it would be entered in another process than the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self._home = Home()

    def is_here(self) -> bool:
        """Whether it can be entered."""
        return self._home.is_here()

    def __enter__(self) -> bool:
        self._home.require()
        return super().__enter__()


def forked_error() -> ForkedError:
    """What a caller gets from a model that was loaded before this process was forked off."""
    return ForkedError(
        _("The model was loaded before this process was forked off; its thread is in the parent process."),
        _("Load the model after the fork, or start processes with multiprocessing's method 'spawn'."),
    )
