"""The results a model has given, on disk: an interrupted evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, hash_args

from weblab_local.engine.engine import Engine
from weblab_local.files import private_folder, private_opener
from weblab_local.home import data_dir

Progress = Callable[[str, int, int], None]
"""Called with a kind of request ("loglikelihood" or "generate_until"), how many are answered, and how many in all."""


def cache_path(name: str, *identity: object) -> Path:
    """Return the file of the model called `name`, in the settings that `identity` tells from all others."""
    digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode()).hexdigest()
    return data_dir() / "evaluations" / f"{name}-{digest[:12]}.jsonl"


def cache_of(engine: Engine) -> "ResultCache":
    """Open the cache of a loaded model, for its n_ctx and type of KV cache."""
    file = engine.path.stat()
    identity = (engine.path.resolve(), file.st_size, file.st_mtime_ns, engine.longest_sequence, engine.kv_type)
    adapters = (adapter.identity for adapter in engine.adapters)
    return ResultCache(cache_path(engine.path.stem, *identity, *adapters))


class ResultCache(AbstractContextManager["ResultCache"]):
    """Results by request, a line of JSON each; what is added is on disk at once. It is a cache hook for lm-eval."""

    def __init__(self, path: Path) -> None:
        """Read what is there. The beginning of a line that was not finished is dropped."""
        self.path = path
        private_folder(path.parent)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._known: dict[str, Any] = dict(json.loads(line) for line in whole.splitlines())
        self._file = open(path, "ab", opener=private_opener)  # noqa: SIM115 (Path.open takes no opener)
        self._file.truncate(len(whole))
        self.on_added: Callable[[], None] | None = None

    def __contains__(self, request: tuple[str, Sequence[Any]]) -> bool:
        return hash_args(*request) in self._known

    def __getitem__(self, request: tuple[str, Sequence[Any]]) -> Any:
        return self._known[hash_args(*request)]

    def add_partial(self, kind: str, arguments: Sequence[Any], result: Any) -> None:
        """Keep a result; lm-eval's name for it."""
        key = hash_args(kind, arguments)
        self._known[key] = result
        self._file.write(json.dumps([key, result], ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        if self.on_added is not None:
            self.on_added()

    def forget(self) -> None:
        """Drop everything."""
        self._known.clear()
        self._file.truncate(0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


class CachedLM(LM):  # type: ignore[misc]
    """A model for lm-eval that asks `lm` only what `cache` does not have."""

    def __init__(self, lm: LM, cache: ResultCache, progress: Progress | None = None) -> None:
        super().__init__()
        self._lm = lm
        self._cache = cache
        self._progress = progress
        lm.set_cache_hook(cache)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """See lm-eval's LM."""
        return [(result[0], result[1]) for result in self._all("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """See lm-eval's LM."""
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """See lm-eval's LM."""
        return self._all("generate_until", requests)

    def _all(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        left = [request for request in requests if (kind, request.args) not in self._cache]
        done = len(requests) - len(left)

        def added() -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(kind, done, len(requests))

        if left:
            self._cache.on_added = added
            getattr(self._lm, kind)(left)
        return [self._cache[kind, request.args] for request in requests]
