"""Who is using a model while another thread closes it."""

from collections.abc import Iterator
from contextlib import contextmanager

from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama import forks


class Users:
    """Counts who is inside. They do not wait for each other; closing waits for all of them.

    In a forked child nobody is counted: nothing of its parent's is freed there.
    """

    def __init__(self) -> None:
        self._changed = forks.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be one of them. Raises WeblabError when closed."""
        if not self._changed.is_here():
            if self._closed:
                raise closed_error()
            yield
            return
        with self._changed:
            if self._closed:
                raise closed_error()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more, and wait until nobody is inside."""
        self._closed = True
        if self._changed.is_here():
            with self._changed:
                self._changed.wait_for(lambda: not self._inside)


def closed_error() -> WeblabError:
    """What a caller gets from an engine that was closed."""
    return WeblabError(_("The model was closed."), _("Load it again with weblab_local.load()."))
