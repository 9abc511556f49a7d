"""The model of an app's server: chosen from the page, loaded and exchanged while the server runs."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType

from weblab_local.engine.engine import Engine
from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama.gguf_header import read_header
from weblab_local.llama.gptneox import require_gptneox
from weblab_local.models.store import find_model
from weblab_local.server.config import ServerConfig
from weblab_local.server.desktop.remembered import remember_model
from weblab_local.server.errors import ApiError
from weblab_local.server.state import ServerState

logger = logging.getLogger(__name__)

Load = Callable[[str, Callable[[float], None]], Engine]
"""Makes an engine of a path; tells a callback the share that is loaded, whose exceptions end the loading."""


@dataclass(frozen=True)
class Loading:
    """A model on its way: what was asked for, and the share that is loaded."""

    name: str
    share: float = 0.0


class ModelHolder(AbstractContextManager["ModelHolder"]):
    """Holds no model, one that is being loaded, or one that answers. Any thread may call.

    A model that cannot be loaded, as far as its file's header says, leaves the one before where it is. One that can
    takes its place: two at once would rarely fit into the memory.
    """

    def __init__(self, load: Load, config: ServerConfig) -> None:
        self._load = load
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._served: ServerState | None = None
        self.loading: Loading | None = None
        """What is being loaded; None where nothing is."""
        self.failure: str | None = None
        """Why the last model that was asked for could not be loaded; None where it could."""

    @property
    def name(self) -> str | None:
        """The name of the model that answers; None where there is none."""
        served = self._served
        return served.model_id if served is not None else None

    def current(self) -> ServerState:
        """What requests to the model that answers share. Raises ApiError 503 where there is none."""
        if (served := self._served) is not None:
            return served
        message = (
            _("No model is loaded yet. Choose one on the page.")
            if self.loading is None
            else _("The model is still being loaded.")
        )
        raise ApiError(503, message, code="model_not_loaded")

    def choose(self, name: str) -> None:
        """Begin to load a model: a GGUF's path, a name in the store, or "demo". What becomes of it is told later.

        Raises ApiError 409 while another is being loaded.
        """
        with self._lock:
            if self.loading is not None or self._closed:
                raise ApiError(409, _("The model is still being loaded."), code="model_loading")
            self.loading, self.failure = Loading(name), None
            self._thread = threading.Thread(target=self._run, args=(name,), name="weblab-local load")
            self._thread.start()

    def _run(self, name: str) -> None:
        failure = None
        try:
            path = find_model(name)
            require_gptneox(read_header(path))
            self._drop()
            engine = self._load(str(path), lambda share: self._progressed(name, share))
            state = ServerState(engine, self._config)
            state.reading_ahead.begin()
            with self._lock:
                self._served = state
            with suppress(OSError):
                remember_model(path)
        except (WeblabError, OSError) as error:
            failure = str(error)
        except _Closed:
            pass
        except Exception as error:
            logger.exception("loading failed")
            failure = _("The server failed. Its log says where.") + f" ({type(error).__name__})"
        self.failure, self.loading = failure, None

    def _progressed(self, name: str, share: float) -> None:
        if self._closed:
            raise _Closed
        self.loading = Loading(name, share)

    def _drop(self) -> None:
        """Close the engine that answers, if there is one; who waits for an answer of it is told so."""
        with self._lock:
            served, self._served = self._served, None
        if served is not None:
            served.engine.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End a loading that is under way, and close the engine."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._thread.join()
        self._drop()


class _Closed(Exception):
    """Ends a loading whose model nobody will ask any more."""
