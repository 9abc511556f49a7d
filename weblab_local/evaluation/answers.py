"""What a model has answered already, on disk: an interrupted evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, hash_args

from weblab_local.engine import Engine
from weblab_local.model_store import data_dir

Progress = Callable[[str, int, int], None]
"""Called with a kind of request ("loglikelihood" or "generate_until"), how many are answered, and how many in all."""


def answers_path(name: str, *identity: object) -> Path:
    """The file for the answers of the model called `name` in the settings that `identity` tells from all others."""
    digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode()).hexdigest()
    return data_dir() / "evaluations" / f"{name}-{digest[:12]}.jsonl"


def answers_of(engine: Engine) -> "Answers":
    """The answers of a loaded model, with its context and KV cache as they are."""
    file = engine.path.stat()
    identity = (engine.path.resolve(), file.st_size, file.st_mtime_ns, engine.longest_sequence, engine.kv_type)
    return Answers(answers_path(engine.path.stem, *identity))


class Answers(AbstractContextManager["Answers"]):
    """Answers by request, a line of JSON each; what is added is on disk at once. It is a cache hook for lm-eval."""

    def __init__(self, path: Path) -> None:
        """Read what is there. The beginning of a line that was not finished is dropped."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._known: dict[str, Any] = dict(json.loads(line) for line in whole.splitlines())
        self._file = path.open("ab")
        self._file.truncate(len(whole))
        self.on_added: Callable[[], None] | None = None

    def __contains__(self, request: tuple[str, Sequence[Any]]) -> bool:
        return hash_args(*request) in self._known

    def __getitem__(self, request: tuple[str, Sequence[Any]]) -> Any:
        return self._known[hash_args(*request)]

    def add_partial(self, kind: str, arguments: Sequence[Any], answer: Any) -> None:
        """Keep an answer; lm-eval's name for it."""
        key = hash_args(kind, arguments)
        self._known[key] = answer
        self._file.write(json.dumps([key, answer], ensure_ascii=False).encode() + b"\n")
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


class ResumedLM(LM):  # type: ignore[misc]
    """A model for lm-eval that asks `lm` only what `answers` does not have."""

    def __init__(self, lm: LM, answers: Answers, progress: Progress | None = None) -> None:
        super().__init__()
        self._lm = lm
        self._answers = answers
        self._progress = progress
        lm.set_cache_hook(answers)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """See lm-eval's LM."""
        return [(answer[0], answer[1]) for answer in self._answered("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """See lm-eval's LM."""
        return self._answered("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """See lm-eval's LM."""
        return self._answered("generate_until", requests)

    def _answered(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        left = [request for request in requests if (kind, request.args) not in self._answers]
        done = len(requests) - len(left)

        def added() -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(kind, done, len(requests))

        if left:
            self._answers.on_added = added
            getattr(self._lm, kind)(left)
        return [self._answers[kind, request.args] for request in requests]
